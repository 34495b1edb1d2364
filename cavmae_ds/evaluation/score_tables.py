"""Scores as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from cavmae_ds.evaluation.inference import ModeScores
from cavmae_ds.terminal import folding_table

LONGEST_TABLE = 20  # classes; of more the best and the worst are shown


def mode_table(found: dict[str, ModeScores], probabilities: str) -> Table:
    """One row a mode."""
    scores = next(iter(found.values())).scores
    left_out = len(scores.classes) - scores.scored_classes
    note = f"; {left_out} of {len(scores.classes)} classes have no clip and are left out" if left_out else ""
    table = folding_table(
        Column("mode", no_wrap=True), "frames", "mAP", "AUC", "d'", "accuracy", "mAP of one frame",
        title=f"classification of {scores.clips} clips, {probabilities}{note}",
    )  # fmt: skip
    for mode, (frames, means, alone, *_) in found.items():
        single = [one.mean_average_precision for one in alone]
        table.add_row(
            mode, str(len(frames) or "-"), f"{means.mean_average_precision:.2%}", _share(means.mean_auc, 2),
            "-" if means.d_prime is None else f"{means.d_prime:.3f}", f"{means.accuracy:.2%}",
            f"{min(single):.2%} to {max(single):.2%}" if len(single) > 1 else "-",
        )  # fmt: skip
    return table


def class_table(mode: str, classes: list[dict[str, Any]]) -> Table:
    """One row a class that has clips, as classification.json tells of it; the best first."""
    scored = sorted(
        (one for one in classes if one["positives"]), key=lambda one: one["average_precision"], reverse=True
    )
    title, half = f"classes, {mode}", LONGEST_TABLE // 2
    if len(scored) > LONGEST_TABLE:
        title, scored = f"the {half} best and {half} worst classes, {mode}", scored[:half] + scored[-half:]
    table = folding_table("class", "clips", "AP", "AUC", title=title)
    for one in scored:
        table.add_row(one["name"], str(one["positives"]), f"{one['average_precision']:.1%}", _share(one["auc"]))
    return table


def retrieval_table(scores: dict[str, Any]) -> Table:
    """Both directions, as retrieval.json tells of them, and chance."""
    title = f"retrieval among {scores['pool']} clips"
    table = folding_table("", "R@1", "R@5", "R@10", "median rank", "class P@1", title=title)
    for name, direction in (("V->A", "image_to_audio"), ("A->V", "audio_to_image")):
        row = scores[direction]
        recalls = [f"{row[f'recall_at_{k}']:.1%}" for k in (1, 5, 10)]
        table.add_row(name, *recalls, f"{row['median_rank']:g}", _share(row["class_precision_at_1"]))
    pool = scores["pool"]
    chances = [f"{min(1.0, k / pool):.1%}" for k in (1, 5, 10)]
    table.add_row("chance", *chances, f"{(pool + 1) / 2:.0f}", _share(scores["chance_class_precision_at_1"]))
    return table


def _share(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}%}"

"""What the digits benchmark says: floors of the contrastive loss, tables, one figure. Reads its JSON document alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import hypergeom

TRAIN_CLIPS = 2700
CLASSES = {"speaker": 6, "digit": 10, "both": 60}
"""Equally many clips each: speakers, digits, and pairs of them."""
COLOURS = {"speaker": "tab:blue", "digit": "tab:orange", "both": "tab:green"}


def floors(batch: int, clips: int = TRAIN_CLIPS) -> dict[str, float]:
    """The least contrastive loss of who knows one factor and nothing else, in a batch drawn without replacement.

    Clips that share a class with the query then look alike, so the best a model can do is to give each of them the
    same probability: the loss is the mean of ln(1 + others of the class in the batch).
    """
    others = np.arange(batch)
    found = {"nothing": math.log(batch)}
    for factor, classes in CLASSES.items():
        chance = hypergeom.pmf(others, clips - 1, clips // classes - 1, batch - 1)
        found[factor] = float(chance @ np.log1p(others))
    return found


def tables(document: Mapping[str, Any]) -> str:
    """Markdown: retrieval and probes at the start and the end of each run."""
    parts = []
    for run in document["runs"]:
        train = run["settings"]["train"]
        parts += [f"ink {document['ink']}, seed {run['seed']}: {train['steps']} steps of {train['global_batch']} clips"]
        parts += ["", "| class P@1 | untrained | pretrained | chance |", "|---|---:|---:|---:|"]
        first, last = run["retrieval"][0], run["retrieval"][-1]
        for factor in ("speaker", "digit"):
            for direction in ("audio_to_image", "image_to_audio"):
                shares = (first[factor][direction], last[factor][direction], last[factor]["chance"])
                parts.append(_row(f"{factor}, {direction.replace('_', ' ')}", shares))
        parts += ["", "| linear probe of the digit | untrained | pretrained |", "|---|---:|---:|"]
        parts += [
            _row(view, (run["probes"][model]["digit"][view] for model in ("untrained", "pretrained")))
            for view in ("audio", "image", "both")
        ]
        parts.append("")
    return "\n".join(parts)


def write_figure(document: Mapping[str, Any], path: Path) -> None:
    """The contrastive loss beside its floors, and class P@1 beside chance; a line for each seed. PNG."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for run in document["runs"]:
        steps, values = zip(*_points(run["curves"]["loss/contrastive"]), strict=True)
        losses.plot(steps, values, color="black", linewidth=1)
        for factor in ("speaker", "digit"):
            for direction, style in (("audio_to_image", "-"), ("image_to_audio", "--")):
                precision = [point[factor][direction] for point in run["retrieval"]]
                label = f"{factor}, {direction.replace('_to_', ' to ')}" if run is document["runs"][0] else None
                steps = [point["step"] for point in run["retrieval"]]
                shares.plot(steps, precision, style, color=COLOURS[factor], label=label)
    for what, floor in document["floors"].items():
        losses.axhline(floor, color=COLOURS.get(what, "grey"), linestyle=":", linewidth=1)
        losses.annotate(
            f"knows {what}", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    for factor in ("speaker", "digit"):
        chance = document["runs"][0]["retrieval"][0][factor]["chance"]
        shares.axhline(chance, color=COLOURS[factor], linestyle=":", linewidth=1)
    losses.set(xlabel="optimizer step", ylabel="contrastive loss", ylim=(0, None))
    shares.set(xlabel="optimizer step", ylabel="class P@1, held-out clips", ylim=(0, 1))
    shares.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _points(curve: Mapping[Any, float]) -> list[tuple[int, float]]:
    return sorted((int(step), value) for step, value in curve.items())


def _row(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"

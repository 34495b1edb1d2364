"""What the digits benchmark says: floors of the contrastive loss, tables, one figure. Reads its JSON document alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAIN_CLIPS = 2700
CLASSES = {"speaker": 6, "digit": 10, "both": 60}
"""Equally many clips each: speakers, digits, and pairs of them."""
DIRECTIONS = ("audio_to_image", "image_to_audio")
COLOURS = {"speaker": "tab:blue", "digit": "tab:orange", "both": "tab:green"}
MODE_COLOURS = ("black", "tab:red", "tab:purple")
LEAST_SHARE = 1e-3
"""Of variance: less cannot be told from nothing with 300 clips."""


def floors(batch: int, clips: int = TRAIN_CLIPS) -> dict[str, float]:
    """The least contrastive loss of who knows one factor and nothing else, in a batch drawn without replacement.

    Clips that share a class with the query then look alike, so the best a model can do is to give each of them the
    same probability: the loss is the mean of ln(1 + others of the class in the batch).
    """
    from scipy.stats import hypergeom

    others = np.arange(batch)
    found = {"nothing": math.log(batch)}
    for factor, classes in CLASSES.items():
        chance = hypergeom.pmf(others, clips - 1, clips // classes - 1, batch - 1)
        found[factor] = float(chance @ np.log1p(others))
    return found


def tables(document: Mapping[str, Any]) -> str:
    """Markdown: retrieval and probes at the start and the end of each run, and what the finetuned classifiers score."""
    parts = []
    for run in document["runs"]:
        train = run["settings"]["train"]
        parts += [f"ink {document['ink']}, seed {run['seed']}: {train['steps']} steps of {train['global_batch']} clips"]
        parts += ["", "| class P@1 | untrained | pretrained | chance |", "|---|---:|---:|---:|"]
        first, last = run["retrieval"][0], run["retrieval"][-1]
        for factor in ("speaker", "digit"):
            for direction in DIRECTIONS:
                shares = (first[factor][direction], last[factor][direction], last[factor]["chance"])
                parts.append(_row(f"{factor}, {direction.replace('_', ' ')}", shares))
        parts += ["", "| linear probe of the digit | untrained | pretrained |", "|---|---:|---:|"]
        parts += [
            _row(view, (run["probes"][model]["digit"][view] for model in ("untrained", "pretrained")))
            for view in ("audio", "image", "both")
        ]
        parts += ["", "| finetuned, accuracy of the digit | labels | one frame | ten frames |", "|---|---|---:|---:|"]
        parts += [
            _row(f"{mode} | {labels}", (found["one_frame"], found["ten_frames"]))
            for labels, modes in run["finetuned"].items()
            for mode, found in modes.items()
        ]
        parts += ["", "| seconds | CPU | wall |", "|---|---:|---:|"]
        parts += [f"| {what} | {spent['cpu_s']} | {spent['wall_s']} |" for what, spent in run["spent"].items()]
        parts.append("")
    return "\n".join(parts)


def write_figure(document: Mapping[str, Any], path: Path) -> None:
    """Four panels, a line for each seed: loss, variance the digit explains, class P@1, finetuned accuracies. PNG."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    (losses, variances), (shares, accuracies) = figure.subplots(2, 2)
    _draw_losses(losses, document)
    _draw_variances(variances, document["runs"])
    _draw_shares(shares, document["runs"])
    _draw_accuracies(accuracies, document["runs"])
    for panel, place in ((variances, "lower right"), (shares, "center left"), (accuracies, "lower right")):
        panel.legend(fontsize=8, frameon=False, loc=place)
    figure.savefig(path, dpi=110)


def _draw_losses(panel: Axes, document: Mapping[str, Any]) -> None:
    for run in document["runs"]:
        panel.plot(*zip(*_points(run["curves"]["loss/contrastive"]), strict=True), color="black", linewidth=1)
    for what, floor in document["floors"].items():
        panel.axhline(floor, color=COLOURS.get(what, "grey"), linestyle=":", linewidth=1)
        panel.annotate(
            f"knows {what}", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8
        )
    panel.set(xlabel="optimizer step", ylabel="contrastive loss", ylim=(0, None))


def _draw_variances(panel: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for run in runs:
        steps = [point["step"] for point in run["retrieval"]]
        for side, style in (("audio", "-"), ("image", "--")):
            values = [max(point["explained"][side], LEAST_SHARE) for point in run["retrieval"]]
            panel.plot(steps, values, style, color=COLOURS["digit"], label=side if run is runs[0] else None)
    panel.set(xlabel="optimizer step", ylabel="variance the digit explains", yscale="log", ylim=(LEAST_SHARE, 1))


def _draw_shares(panel: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for factor in ("speaker", "digit"):
        for run in runs:
            steps = [point["step"] for point in run["retrieval"]]
            for direction, style in zip(DIRECTIONS, ("-", "--"), strict=True):
                precision = [point[factor][direction] for point in run["retrieval"]]
                label = f"{factor}, {direction.replace('_to_', ' to ')}" if run is runs[0] else None
                panel.plot(steps, precision, style, color=COLOURS[factor], label=label)
        panel.axhline(runs[0]["retrieval"][0][factor]["chance"], color=COLOURS[factor], linestyle=":", linewidth=1)
    panel.set(xlabel="optimizer step", ylabel="class P@1, held-out clips", ylim=(0, 1))


def _draw_accuracies(panel: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for run in runs:
        for labels, style in (("all", "-"), ("few", "--")):
            for (mode, found), colour in zip(run["finetuned"][labels].items(), MODE_COLOURS, strict=True):
                epochs, values = zip(*_points(found["epochs"]), strict=True)
                shares = [epoch / epochs[-1] for epoch in epochs]
                label = f"{mode}, {labels} labels" if run is runs[0] else None
                panel.plot(shares, values, style, color=colour, label=label)
    panel.set(xlabel="share of the finetuning", ylabel="accuracy, held-out clips, one frame", ylim=(None, 1.01))


def _points(curve: Mapping[Any, float]) -> list[tuple[int, float]]:
    return sorted((int(step), value) for step, value in curve.items())


def _row(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"

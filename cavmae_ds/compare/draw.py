"""The picture of a comparison: a panel for each curve, a colour for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from cavmae_ds.compare.runs import Axis, ComparedRun, differences
from cavmae_ds.errors import as_label

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
"""Okabe and Ito's: told apart by people who do not see all colours."""
AXES = {"steps": "optimizer steps", "clips": "clips seen", "time": "hours of training"}
NOISY = 200
"""Points above which a curve is drawn as a running mean before its faint self."""
DIFFERENCES_SHOWN = 4


def draw(runs: Sequence[ComparedRun], tags: Sequence[str], by: Axis) -> Figure:
    """What differs between the runs stands beside their names."""
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    labels = names_with_differences(runs)
    figure = Figure(figsize=(max(6.5, 4.6 * columns), 3.2 * rows + 0.5 + 0.24 * len(runs)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for tag, panel in zip(tags, axes, strict=False):
        for number, run in enumerate(runs):
            if tag in run.curves:
                values = np.array([point.value for point in run.curves[tag]])
                _line(panel, np.array(run.axis(tag, by)), values, COLOURS[number % len(COLOURS)])
        panel.set_title(as_label(tag), fontsize=10, loc="left")
        panel.set_xlabel(AXES[by], fontsize=9)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.tick_params(labelsize=8)
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    for unused in axes[len(tags) :]:
        unused.set_axis_off()
    lines = [
        axes[0].plot([], [], color=COLOURS[number % len(COLOURS)], label=as_label(label))[0]
        for number, label in enumerate(labels)
    ]
    figure.legend(handles=lines, loc="outside upper left", frameon=False, fontsize=9)
    return figure


def names_with_differences(runs: Sequence[ComparedRun]) -> list[str]:
    """`a: learning_rate 0.001, global_batch 64`: the first few settings in which the runs differ."""
    found = list(differences(runs).items())
    labels = []
    for number, run in enumerate(runs):
        settings = [f"{key.rpartition('.')[2]} {shown(values[number])}" for key, values in found[:DIFFERENCES_SHOWN]]
        more = [f"and {len(found) - DIFFERENCES_SHOWN} more"] if len(found) > DIFFERENCES_SHOWN else []
        labels.append(f"{run.name}: {', '.join(settings + more)}" if settings else run.name)
    return labels


def shown(value: Any) -> str:
    """A setting in few characters."""
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def _line(panel: Axes, x: np.ndarray, values: np.ndarray, colour: str) -> None:
    if len(values) <= NOISY:
        panel.plot(x, values, color=colour, linewidth=1.4, marker="." if len(values) < 30 else None)
        return
    width = len(values) // 50
    panel.plot(x, values, color=colour, linewidth=0.6, alpha=0.25)
    panel.plot(x[width - 1 :], np.convolve(values, np.full(width, 1 / width), "valid"), color=colour, linewidth=1.6)

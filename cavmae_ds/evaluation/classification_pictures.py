"""Pictures of a classifier's scores: precision against recall, every class, which classes are taken for which.

N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_precision_recall_curve

from cavmae_ds.errors import as_label
from cavmae_ds.evaluation.classification import Classification

MOST_NAMES = 30
"""Classes whose names are legible beside each other."""

RECALLS = np.linspace(0, 1, 101)


def draw_classification(
    scores: Classification, targets: Tensor, probabilities: Tensor, names: Sequence[str], title: str
) -> Figure:
    """Curves of some classes, bars of all, and confusions where every clip has one class. targets etc.: [N, C]."""
    names, title = [as_label(name) for name in names], as_label(title)
    confused = bool((targets.sum(1) == 1).all())
    scored = [k for k, one in enumerate(scores.classes) if one.positives]
    ranked = sorted(scored, key=lambda k: scores.classes[k].average_precision or 0.0, reverse=True)
    figure = Figure(figsize=(19 if confused else 13, 6.5), layout="constrained")
    axes = figure.subplots(1, 3 if confused else 2)
    figure.suptitle(f"{title}: mAP {scores.mean_average_precision:.1%}, accuracy {scores.accuracy:.1%}", fontsize=12)
    _draw_curves(axes[0], scores, ranked, targets, probabilities, names)
    _draw_bars(axes[1], scores, ranked, names)
    if confused:
        counts = confusion(targets, probabilities)
        (_draw_matrix if len(names) <= MOST_NAMES else _draw_pairs)(axes[2], counts, names)
    return figure


def confusion(targets: Tensor, probabilities: Tensor) -> NDArray[np.int64]:
    """Clips of class i whose most probable class is j: [C, C]. Each clip has one class."""
    classes = targets.shape[1]
    cells = targets.argmax(1) * classes + probabilities.argmax(1)
    return torch.bincount(cells, minlength=classes**2).view(classes, classes).numpy()


def _draw_curves(
    axes: Axes, scores: Classification, ranked: list[int], targets: Tensor, probabilities: Tensor, names: Sequence[str]
) -> None:
    """The best, the median and the worst class, and the mean of all."""
    curves = {k: _precision_at_recalls(targets[:, k], probabilities[:, k]) for k in ranked}
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    for what, k in chosen.items():
        axes.plot(RECALLS, curves[k], lw=1.2, label=f"{what}: {names[k]}, AP {scores.classes[k].average_precision:.1%}")
    axes.plot(RECALLS, np.mean(list(curves.values()), axis=0), "k", lw=2.4, label=f"mean of {len(ranked)} classes")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("precision at recall, at the best threshold that reaches it", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _precision_at_recalls(truth: Tensor, probabilities: Tensor) -> NDArray[np.float64]:
    """The highest precision of any threshold that has at least this recall, at each of RECALLS."""
    precision, recall, _ = binary_precision_recall_curve(probabilities, truth.long())  # recall falls
    best = np.maximum.accumulate(precision.double().numpy())[::-1]  # of this recall and all higher ones
    return best[np.searchsorted(recall.double().numpy()[::-1], RECALLS - 1e-6)]


def _draw_bars(axes: Axes, scores: Classification, ranked: list[int], names: Sequence[str]) -> None:
    precisions = [scores.classes[k].average_precision or 0.0 for k in ranked]
    if len(ranked) <= MOST_NAMES:
        bars = axes.barh([names[k] for k in ranked], precisions, color="C0")
        axes.bar_label(bars, [f"{scores.classes[k].positives} clips" for k in ranked], padding=3, fontsize=7)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlim(0, 1.15)
    else:
        axes.barh(np.arange(len(ranked)), precisions, height=1.0, color="C0")
        axes.set(ylabel="classes, best first", xlim=(0, 1))
    axes.invert_yaxis()
    axes.axvline(scores.mean_average_precision, color="k", lw=1, ls="--")
    axes.set_xlabel("average precision; dashed: mean")
    axes.set_title("every class", fontsize=10)


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places, size = np.arange(len(names)), 9 if len(names) <= 15 else 7
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    if len(names) <= 15:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            axes.text(
                column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k"
            )
    axes.set(xlabel="most probable class", ylabel="class of the clip")
    axes.set_title("share of each class's clips", fontsize=10)


def _draw_pairs(axes: Axes, counts: NDArray[np.int64], names: Sequence[str], most: int = 25) -> None:
    """The pairs of classes that are most often taken for each other."""
    wrong = counts - np.diag(counts.diagonal())
    pairs = [divmod(int(cell), len(names)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:most]]
    bars = axes.barh([f"{names[i]} → {names[j]}" for i, j in pairs], [wrong[i, j] for i, j in pairs], color="C3")
    axes.bar_label(bars, [f"{wrong[i, j]} of {counts[i].sum()}" for i, j in pairs], padding=3, fontsize=7)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("clips, of those of the first class")
    axes.set_title(f"the {len(pairs)} most frequent confusions: class → taken for", fontsize=10)

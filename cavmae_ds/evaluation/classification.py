"""Scores of a classifier: average precision, AUC and d' of each class, their means, accuracy (spec/cav-mae.md 5.1).

N clips, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


class ClassScores(NamedTuple):
    """One class against all others; None where that is not defined."""

    positives: int
    """Clips of the class."""
    average_precision: float | None
    """None without positives."""
    auc: float | None
    """Area under the ROC curve; None without positives or without negatives."""
    d_prime: float | None
    """sqrt(2) times the normal quantile of the AUC; infinite for an AUC of 0 or 1."""


class Classification(NamedTuple):
    """Means over the classes that have positives, and every class."""

    clips: int
    scored_classes: int
    """Classes with positives: those that the mean average precision is of. The others count for nothing."""
    mean_average_precision: float
    mean_auc: float | None
    """Over the classes with positives and negatives; None if there are none."""
    d_prime: float | None
    """Of the mean AUC."""
    accuracy: float
    """Share of clips whose most probable class is one of theirs; with one class a clip that is the accuracy."""
    classes: list[ClassScores]
    """All C of them, in their order."""


def classification_scores(targets: Tensor, probabilities: Tensor) -> Classification:
    """Score probabilities [N, C] in 0..1 against targets [N, C] of 0 and 1; clips of equal probability share a rank.

    Classes without positives are left out of all means (the official program counts them as 0, or as NaN).
    Raises ValueError for other shapes, values outside 0..1 or NaN, and when no clip has a class.
    """
    if targets.shape != probabilities.shape or targets.ndim != 2:
        raise ValueError(
            f"targets and probabilities must both be [N, C], got {tuple(targets.shape)} and "
            f"{tuple(probabilities.shape)}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must be within 0..1, got others or NaN")
    truth = targets > 0.5
    if not truth.any():
        raise ValueError(f"none of {len(truth)} clips has a class: there is nothing to score")
    classes = [_one_class(*columns) for columns in zip(truth.T, probabilities.T, strict=True)]
    precisions = [scores.average_precision for scores in classes if scores.average_precision is not None]
    areas = [scores.auc for scores in classes if scores.auc is not None]
    mean_auc = math.fsum(areas) / len(areas) if areas else None
    return Classification(
        clips=len(truth),
        scored_classes=len(precisions),
        mean_average_precision=math.fsum(precisions) / len(precisions),
        mean_auc=mean_auc,
        d_prime=None if mean_auc is None else d_prime(mean_auc),
        accuracy=truth.gather(1, probabilities.argmax(1, keepdim=True)).double().mean().item(),
        classes=classes,
    )


def d_prime(auc: float) -> float:
    """How far apart two normal distributions of variance 1 are that give this area under the ROC curve."""
    return math.sqrt(2) * torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)).item()


def one_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Class ids of N clips as targets [N, C], float32. Raises IndexError for an id that is no class."""
    targets = torch.zeros(len(labels), classes)
    for row, clip in zip(targets, labels, strict=True):
        row[list(clip)] = 1
    return targets


def _one_class(truth: Tensor, probabilities: Tensor) -> ClassScores:
    positives = int(truth.sum())
    if not positives:
        return ClassScores(0, None, None, None)
    precision = binary_average_precision(probabilities, truth.long()).item()
    if positives == len(truth):
        return ClassScores(positives, precision, None, None)
    auc = binary_auroc(probabilities, truth.long()).item()
    return ClassScores(positives, precision, auc, d_prime(auc))

"""Scores of classifiers, against scikit-learn's and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from cavmae_ds.evaluation.classification import classification_scores, d_prime, one_hot


@pytest.mark.parametrize("decimals", [1, 7], ids=["many ties", "hardly any"])
def test_every_class_of_clips_with_several_scores_as_scikit_learn_says(decimals):
    draw = np.random.default_rng(0)
    targets = (draw.random((400, 12)) < 0.15).astype(np.float32)
    probabilities = np.clip(0.3 * targets + 0.7 * draw.random((400, 12)), 0, 1).round(decimals).astype(np.float32)

    scores = classification_scores(torch.from_numpy(targets), torch.from_numpy(probabilities))

    precisions = average_precision_score(targets, probabilities, average=None)
    areas = roc_auc_score(targets, probabilities, average=None)
    assert [one.average_precision for one in scores.classes] == pytest.approx(precisions, abs=1e-6)
    assert [one.auc for one in scores.classes] == pytest.approx(areas, abs=1e-6)
    assert [one.positives for one in scores.classes] == targets.sum(0).tolist()
    assert scores.mean_average_precision == pytest.approx(precisions.mean(), abs=1e-6)
    assert scores.mean_auc == pytest.approx(areas.mean(), abs=1e-6)
    assert scores.d_prime == d_prime(scores.mean_auc)


def test_with_one_class_a_clip_accuracy_is_scikit_learns():
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 5, 300)
    probabilities = draw.dirichlet(np.ones(5), 300) + np.eye(5)[labels] * 0.3
    probabilities /= probabilities.sum(1, keepdims=True)
    scores = classification_scores(one_hot([[k] for k in labels], 5), torch.from_numpy(probabilities))
    assert scores.accuracy == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))


def test_a_class_that_no_clip_has_is_left_out_and_counted():
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    probabilities = torch.tensor([[0.9, 0.2, 0.8], [0.1, 0.7, 0.9], [0.8, 0.3, 0.7]])

    scores = classification_scores(targets, probabilities)

    assert scores.classes[2] == (0, None, None, None)
    assert (scores.scored_classes, scores.mean_average_precision, scores.mean_auc) == (2, 1.0, 1.0)
    assert scores.d_prime == math.inf


def test_a_class_that_every_clip_has_counts_for_precision_alone():
    scores = classification_scores(torch.ones(3, 1), torch.tensor([[0.1], [0.2], [0.3]]))
    assert scores.classes == [(3, 1.0, None, None)] and scores.mean_auc is scores.d_prime is None


def test_d_prime_is_the_published_one():
    assert d_prime(0.968114) == pytest.approx(2.6216, abs=1e-4)


@pytest.mark.parametrize(
    ("targets", "probabilities", "sentence"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), "must both be"),
        (torch.ones(2, 3), torch.full((2, 3), 1.5), "within 0..1"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), "NaN"),
        (torch.zeros(2, 3), torch.ones(2, 3), "none of 2 clips has a class"),
    ],
)
def test_what_cannot_be_scored_is_refused(targets, probabilities, sentence):
    with pytest.raises(ValueError, match=sentence):
        classification_scores(targets, probabilities)

"""What is drawn of a classifier's scores, before it is drawn."""

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_curve

from cavmae_ds.evaluation.classification import classification_scores, one_hot
from cavmae_ds.evaluation.classification_pictures import confusion, draw_classification


def one_class_a_clip(clips: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    targets = one_hot(torch.randint(0, classes, (clips, 1), generator=draw).tolist(), classes)
    return targets, (2 * targets + torch.randn(clips, classes, generator=draw)).softmax(1)


def test_rows_of_the_confusions_are_the_classes_of_the_clips():
    targets, probabilities = one_class_a_clip(300, 4)
    expected = confusion_matrix(targets.argmax(1), probabilities.argmax(1))
    assert (confusion(targets, probabilities) == expected).all()


def test_curves_are_the_best_precision_at_each_recall_and_confusions_follow_where_a_clip_has_one_class():
    targets, probabilities = one_class_a_clip(300, 4)
    scores = classification_scores(targets, probabilities)
    names = ["a", "b", "c", "d"]

    figure = draw_classification(scores, targets, probabilities, names, "multimodal")

    curves, bars, matrix = figure.axes
    best = max(range(4), key=lambda k: scores.classes[k].average_precision)
    levels = [k / 100 for k in range(101)]
    precision, recall, _ = precision_recall_curve(targets[:, best], probabilities[:, best])
    expected = [max(p for p, r in zip(precision, recall, strict=True) if r >= level - 1e-6) for level in levels]
    assert np.allclose(curves.lines[0].get_xdata(), levels)
    assert np.allclose(curves.lines[0].get_ydata(), expected)
    assert curves.lines[0].get_label().startswith(f"best: {names[best]}, AP")
    assert len(bars.patches) == 4 and matrix.get_xlabel() == "most probable class"
    several = targets.clone()
    several[0] = 1
    assert len(draw_classification(scores, several, probabilities, names, "multimodal").axes) == 2


def test_many_classes_show_their_most_frequent_confusions_instead_of_a_matrix():
    targets, probabilities = one_class_a_clip(300, 40)
    scores = classification_scores(targets, probabilities)
    figure = draw_classification(scores, targets, probabilities, [f"class {k}" for k in range(40)], "audioonly")
    counts = confusion(targets, probabilities)
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    assert widths == sorted((counts - np.diag(counts.diagonal())).flatten(), reverse=True)[:25]

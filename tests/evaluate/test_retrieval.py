"""Retrieval scores on matrices small enough to rank by hand, and against a plain double loop."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.evaluate.retrieval import retrieval_scores, true_ranks


def test_the_rank_of_the_partner_counts_those_before_it():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.3]])
    assert true_ranks(similarity).tolist() == [1, 3, 1]


def test_a_tie_counts_against_the_query_so_a_collapsed_model_ranks_last():
    assert true_ranks(torch.ones(4, 4)).tolist() == [4, 4, 4, 4]
    scores = retrieval_scores(torch.ones(4, 2), torch.ones(4, 2), [[0], [0], [1], [1]])
    assert scores.audio_to_image.recall_at_1 == 0.0
    assert scores.audio_to_image.class_precision_at_1 == scores.chance_class_precision_at_1 == 0.5


def test_perfect_features_score_one_in_both_directions():
    scores = retrieval_scores(torch.eye(6), torch.eye(6), [[i % 3] for i in range(6)])
    for direction in (scores.audio_to_image, scores.image_to_audio):
        assert direction == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert scores.chance_recall_at_1 == pytest.approx(1 / 6)
    assert scores.chance_class_precision_at_1 == pytest.approx(1 / 3)


def test_scores_equal_a_double_loop_over_random_features_with_ties():
    draw = torch.Generator().manual_seed(0)
    audio = torch.randint(-1, 2, (120, 4), generator=draw).double() + 0.5  # few values: many equal cosines
    image = torch.randint(-1, 2, (120, 4), generator=draw).double() + 0.5
    labels = [[i % 5] if i % 7 else [i % 5, 5] for i in range(120)]
    unit = torch.nn.functional.normalize
    similarity = unit(audio, dim=1) @ unit(image, dim=1).T

    scores = retrieval_scores(audio, image, labels)

    for matrix, direction in ((similarity, scores.audio_to_image), (similarity.T, scores.image_to_audio)):
        ranks, hits = [], 0
        for query in range(120):
            before = sum(bool(matrix[query, j] >= matrix[query, query]) for j in range(120) if j != query)
            ranks.append(1 + before)
            best = max(range(120), key=lambda j: (matrix[query, j].item(), -j))
            hits += bool(set(labels[best]) & set(labels[query]))
        assert direction.recall_at_5 == pytest.approx(sum(rank <= 5 for rank in ranks) / 120)
        assert direction.median_rank == sorted(ranks)[59]
        assert direction.class_precision_at_1 == pytest.approx(hits / 120)


def test_without_labels_there_is_no_class_score():
    scores = retrieval_scores(torch.eye(3), torch.eye(3), [[], [], []])
    assert scores.audio_to_image.class_precision_at_1 is None and scores.chance_class_precision_at_1 is None


def test_one_clip_is_nothing_to_rank():
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        retrieval_scores(torch.ones(1, 2), torch.ones(1, 2), [[0]])

"""Retrieval scores on matrices small enough to rank by hand, and against a plain double loop."""

from __future__ import annotations

import statistics

import pytest
import torch

from cavmae_ds.evaluation.retrieval import class_hits, partner_ranks, retrieval_scores
from cavmae_ds.kernels.contrastive import unit_rows


def test_the_rank_of_the_partner_counts_those_before_it():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.3]])
    assert partner_ranks(similarity, torch.arange(3)).tolist() == [1, 3, 1]
    assert partner_ranks(similarity[1:2], torch.tensor([1])).tolist() == [3]


@pytest.mark.parametrize("alike", [1.0, torch.nan])
def test_a_tie_counts_against_the_query_so_a_collapsed_model_ranks_last(alike):
    assert partner_ranks(torch.full((4, 4), alike), torch.arange(4)).tolist() == [4, 4, 4, 4]


def test_a_collapsed_model_finds_no_class_either():
    scores = retrieval_scores(torch.ones(4, 2), torch.ones(4, 2), [[0], [0], [1], [1]])
    assert scores.audio_to_image.recall_at_1 == scores.audio_to_image.class_precision_at_1 == 0.0
    assert scores.audio_to_image.class_precision_at_5 == scores.chance_class_precision_at_1 == 0.5  # all 4 are hits


def test_hits_of_a_class_are_counted_with_ties_against_the_query():
    similarity = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]])
    same_class = torch.tensor([[True, True, False, True, True]])
    assert [int(class_hits(similarity, same_class, first)) for first in (1, 2, 3, 4, 5)] == [1, 1, 2, 3, 4]


def test_perfect_features_score_one_in_both_directions():
    scores = retrieval_scores(torch.eye(6), torch.eye(6), [[i % 3] for i in range(6)])
    for direction in (scores.audio_to_image, scores.image_to_audio):
        assert direction == (1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 2 / 6)  # the other cosines are all alike
    assert scores.chance_recall_at_1 == pytest.approx(1 / 6)
    assert scores.chance_class_precision_at_1 == pytest.approx(1 / 3)


@pytest.mark.parametrize("block_values", [1, 7 * 500 + 3, 2**24], ids=["row by row", "in blocks", "at once"])
def test_scores_equal_a_double_loop_over_random_features_with_ties(block_values):
    draw = torch.Generator().manual_seed(0)
    # Unit rows of 16 values +-1/4: every cosine is exact, in any order of adding, and there are 17 of them.
    audio, image = (torch.randint(0, 2, (500, 16), generator=draw).float() * 2 - 1 for _ in range(2))
    labels = [[i % 5] if i % 7 else [i % 5, 5] for i in range(500)]

    scores = retrieval_scores(audio, image, labels, block_values)

    similarity = (audio @ image.T / 16).tolist()
    assert all(len(set(row)) < 20 for row in similarity)
    reverse = [list(column) for column in zip(*similarity, strict=True)]
    for matrix, direction in ((similarity, scores.audio_to_image), (reverse, scores.image_to_audio)):
        ranks, hits = [], dict.fromkeys((1, 5, 10), 0)
        for query, row in enumerate(matrix):
            ranks.append(sum(row[j] >= row[query] for j in range(500)))
            right = [bool(set(labels[j]) & set(labels[query])) for j in range(500)]
            order = sorted(range(500), key=lambda j: (-row[j], right[j]))
            for first in hits:
                hits[first] += sum(right[j] for j in order[:first])
        assert direction == (
            *(pytest.approx(sum(rank <= k for rank in ranks) / 500) for k in (1, 5, 10)),
            statistics.median(ranks),
            *(pytest.approx(hits[k] / (500 * k)) for k in (1, 5, 10)),
        )
    pairs = sum(bool(set(one) & set(other)) for one in labels for other in labels)
    assert scores.chance_class_precision_at_1 == pairs / 500**2


@pytest.mark.parametrize("clips", [4, 10, 60], ids=["fewer than hits", "as many", "more"])
def test_hits_of_a_class_are_those_of_whole_rows_where_hardly_anything_is_alike(clips):
    draw = torch.Generator().manual_seed(1)
    audio, image = torch.randn(2, clips, 8, generator=draw)
    image[3] = image[1]  # one tie in every row
    labels = [[i % 3] for i in range(clips)]

    found = retrieval_scores(audio, image, labels).audio_to_image

    similarity = unit_rows(audio) @ unit_rows(image).T
    same_class = torch.tensor([[one == other for other in labels] for one in labels])
    firsts = [min(first, clips) for first in (1, 5, 10)]
    expected = [class_hits(similarity, same_class, first).double().mean().item() / first for first in firsts]
    assert found[4:] == pytest.approx(expected)


def test_without_labels_there_is_no_class_score():
    scores = retrieval_scores(torch.eye(3), torch.eye(3), [[], [], []])
    assert scores.audio_to_image.class_precision_at_1 is None and scores.chance_class_precision_at_1 is None


def test_one_clip_is_nothing_to_rank():
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        retrieval_scores(torch.ones(1, 2), torch.ones(1, 2), [[0]])

"""Cross-modal retrieval: given a sound find its frame, given a frame find its sound (spec/cav-mae.md 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.losses import unit_rows


class Direction(NamedTuple):
    """Scores of one direction; shares in 0..1, except the median rank."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    class_precision_at_1: float | None
    """Share of queries whose first hit shares a class with them; None without labels."""


class Retrieval(NamedTuple):
    """Both directions over a pool of N clips, and what guessing would score."""

    pool: int
    audio_to_image: Direction
    image_to_audio: Direction
    chance_recall_at_1: float
    chance_class_precision_at_1: float | None


def retrieval_scores(audio: Tensor, image: Tensor, labels: Sequence[Sequence[int]]) -> Retrieval:
    """Rank N frames for each of N sounds and the reverse, by cosine. audio, image: pooled features [N, D], row = clip.

    labels: class ids of each clip, possibly none. Raises ValueError when there is nothing to rank.
    """
    if len(audio) < 2:
        raise ValueError(f"retrieval needs at least 2 clips, got {len(audio)}")
    similarity = unit_rows(audio) @ unit_rows(image).T  # [N sounds, N frames]
    same_class = _share_a_class(labels).to(similarity.device) if any(map(len, labels)) else None  # [N, N]
    return Retrieval(
        pool=len(audio),
        audio_to_image=_one_direction(similarity, same_class),
        image_to_audio=_one_direction(similarity.T, same_class),
        chance_recall_at_1=1 / len(audio),
        # A query's own partner is among the candidates, so it counts towards chance as well.
        chance_class_precision_at_1=None if same_class is None else same_class.double().mean().item(),
    )


def true_ranks(similarity: Tensor) -> Tensor:
    """1-based rank of each row's partner (the diagonal) by descending similarity [Q, N] -> [Q].

    A tie counts against the query, so a collapsed model ranks last, not first.
    """
    partner = similarity.diagonal()[:, None]
    return (similarity >= partner).sum(1)


def _one_direction(similarity: Tensor, same_class: Tensor | None) -> Direction:
    ranks = true_ranks(similarity)
    at_1, at_5, at_10 = ((ranks <= k).double().mean().item() for k in (1, 5, 10))
    precision = None
    if same_class is not None:
        first_hit = similarity.argmax(1)
        precision = same_class[torch.arange(len(first_hit)), first_hit].double().mean().item()
    return Direction(at_1, at_5, at_10, ranks.double().median().item(), precision)


def _share_a_class(labels: Sequence[Sequence[int]]) -> Tensor:
    classes = 1 + max(label for clip in labels for label in clip)
    membership = torch.zeros(len(labels), classes)
    for row, clip in zip(membership, labels, strict=True):
        row[list(clip)] = 1
    return membership @ membership.T > 0

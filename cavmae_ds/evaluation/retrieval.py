"""Cross-modal retrieval: given a sound find its frame, given a frame find its sound (spec/cav-mae.md 5.2).

N clips, D width, R queries at a time. Ties count against the query, in ranks and in hits of a class: a collapsed model,
to which all clips are alike, comes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.kernels.contrastive import unit_rows

BLOCK_VALUES = 2**24
"""Similarities at a time, 64 MiB in float32: the N x N matrix of many clips fits nowhere."""


class Direction(NamedTuple):
    """Scores of one direction; shares in 0..1, except the median rank. Those of classes are None without labels."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    """Between the two in the middle where their number is even."""
    class_precision_at_1: float | None
    """Share of queries whose first hit shares a class with them."""
    class_precision_at_5: float | None
    """Share of the first 5 hits that share a class with their query."""
    class_precision_at_10: float | None


class Retrieval(NamedTuple):
    """Both directions over a pool of N clips, and what guessing would score."""

    pool: int
    audio_to_image: Direction
    image_to_audio: Direction
    chance_recall_at_1: float
    chance_class_precision_at_1: float | None
    """The same at 5 and at 10."""


def retrieval_scores(
    audio: Tensor, image: Tensor, labels: Sequence[Sequence[int]], block_values: int = BLOCK_VALUES
) -> Retrieval:
    """Rank N frames for each of N sounds and the reverse, by cosine. audio, image: pooled features [N, D], row = clip.

    labels: class ids of each clip, possibly none. Memory: some tensors of block_values, on the device of the features.
    Raises ValueError when there is nothing to rank.
    """
    if len(audio) < 2:
        raise ValueError(f"retrieval needs at least 2 clips, got {len(audio)}")
    sounds, frames = unit_rows(audio), unit_rows(image)
    members = _membership(labels).to(audio.device) if any(map(len, labels)) else None  # [N, C]
    queries = max(1, block_values // len(audio))
    return Retrieval(
        pool=len(audio),
        audio_to_image=_one_direction(sounds, frames, members, queries),
        image_to_audio=_one_direction(frames, sounds, members, queries),
        chance_recall_at_1=1 / len(audio),
        chance_class_precision_at_1=None if members is None else _share_of_pairs(labels, block_values),
    )


def partner_ranks(similarity: Tensor, partners: Tensor) -> Tensor:
    """1-based ranks [R] of each row's partner (its column, [R]) by descending similarity [R, N]."""
    partner = similarity.gather(1, partners[:, None])
    return (~(similarity < partner)).sum(1)  # what is no number counts against the query too


def class_hits(similarity: Tensor, same_class: Tensor, first: int) -> Tensor:
    """How many of the first hits of each row share its class: similarity [R, N], same_class [R, N] bool -> [R] int64.

    Among those that are alike to the last of these hits, other classes come first.
    """
    last = similarity.topk(first, dim=1).values[:, -1:]  # [R, 1]
    before, alike = similarity > last, similarity == last
    room = first - before.sum(1) - (alike & ~same_class).sum(1)
    return (before & same_class).sum(1) + room.clamp(min=0)


def _one_direction(queries: Tensor, candidates: Tensor, members: Tensor | None, at_once: int) -> Direction:
    """Scores of N queries and their N candidates, unit rows [N, D], so many queries at a time."""
    ranks: list[Tensor] = []
    firsts = [min(k, len(queries)) for k in (1, 5, 10)]
    hits = [0, 0, 0]
    for partners in torch.arange(len(queries), device=queries.device).split(at_once):
        similarity = queries[partners] @ candidates.T  # [R, N]
        ranks.append(partner_ranks(similarity, partners))
        if members is not None:
            found = _summed_hits(similarity, partners, members, firsts)
            hits = [so_far + more for so_far, more in zip(hits, found, strict=True)]
    rank = torch.cat(ranks)
    at_1, at_5, at_10 = ((rank <= k).double().mean().item() for k in (1, 5, 10))
    precision = [
        None if members is None else count / (first * len(queries)) for first, count in zip(firsts, hits, strict=True)
    ]
    return Direction(at_1, at_5, at_10, rank.double().quantile(0.5).item(), *precision)


def _summed_hits(similarity: Tensor, partners: Tensor, members: Tensor, firsts: Sequence[int]) -> list[int]:
    """class_hits of all rows together, for each of `firsts`, which ascend. members: [N, C] of 0 and 1.

    Where the last hit is not alike to the next one, which is the rule, only the classes of the hits are looked at.
    """
    rows, pool = similarity.shape
    values, columns = similarity.topk(min(firsts[-1] + 1, pool), dim=1)  # [R, K]
    own = members[partners]  # [R, C]
    same_class = torch.stack([(own * members[column]).any(1) for column in columns.T], dim=1)  # [R, K]
    totals = []
    for first in firsts:
        tied = values[:, first - 1] == values[:, first] if first < pool else values.new_zeros(rows, dtype=torch.bool)
        total = int(same_class[~tied, :first].sum())
        if tied.any():
            total += int(class_hits(similarity[tied], own[tied] @ members.T > 0, first).sum())
        totals.append(total)
    return totals


def _membership(labels: Collection[Collection[int]]) -> Tensor:
    classes = 1 + max(label for clip in labels for label in clip)
    membership = torch.zeros(len(labels), classes)
    for row, clip in zip(membership, labels, strict=True):
        row[list(clip)] = 1
    return membership


def _share_of_pairs(labels: Sequence[Sequence[int]], block_values: int) -> float:
    """Pairs that share a class. A query's own partner is among the candidates, so it counts towards chance as well."""
    sets = Counter(map(frozenset, labels))  # far fewer than clips
    members, clips = _membership(sets), torch.tensor([*sets.values()], dtype=torch.float64)  # [S, C], [S]
    at_once = max(1, block_values // len(sets))
    pairs = sum(
        (count @ ((some @ members.T > 0).double() @ clips)).item()
        for some, count in zip(members.split(at_once), clips.split(at_once), strict=True)
    )
    return pairs / len(labels) ** 2

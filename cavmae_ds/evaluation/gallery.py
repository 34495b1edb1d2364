"""What a model takes for what: some clips, and the frames it finds for their sounds and the sounds for their frames.

N clips, D width. Drawn by gallery_picture and gallery_page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cavmae_ds.data.format.spread import spread
from cavmae_ds.data.inspect.contact_sheet import ShownClip
from cavmae_ds.data.inspect.log_mel_image import Scale, scale_of
from cavmae_ds.data.prepare.frames import encode_picture
from cavmae_ds.data.transforms.log_mel import LogMel, frames_of
from cavmae_ds.evaluation.inference import Judged, Pooled
from cavmae_ds.evaluation.retrieval import partner_ranks
from cavmae_ds.kernels.contrastive import unit_rows

HITS = 5
FRAME_PIXELS = 160
JPEG_QUALITY = 85


class Kinship(str, Enum):
    """What a hit has in common with its query."""

    partner = "its own"
    same_class = "same class"
    other = "other"


class Hit(NamedTuple):
    """One of the first hits."""

    row: int
    """Of the N clips."""
    similarity: float
    """Cosine."""
    kinship: Kinship

    def caption(self, labels: Sequence[str]) -> str:
        """Below the picture: nobody must tell colours apart to find the query's own."""
        own = "its own" if self.kinship == Kinship.partner else ""
        return "  ".join(filter(None, [f"{self.similarity:.2f}", own, ", ".join(labels)]))


class Search(NamedTuple):
    """What one sound, or one frame, finds."""

    hits: list[Hit]
    """The most similar first."""
    partner_rank: int
    """From 1; ties count against the query, as in the scores."""


class Query(NamedTuple):
    """One clip, searched by both of its sides."""

    row: int
    frames: Search
    """By its sound."""
    sounds: Search
    """By its frame."""


@dataclass(frozen=True)
class Gallery:
    """Queries and all clips that are shown, by their row."""

    title: str
    pool: int
    queries: list[Query]
    clips: dict[int, ShownClip]
    """Each with one frame."""
    scores: str = ""
    """Of the whole pool, in one line."""

    @property
    def scale(self) -> Scale:
        """The same colours for the log-mels of all clips."""
        return scale_of(*(clip.log_mel for clip in self.clips.values()))


COSINE = (
    "The number of a hit is the cosine between the features of the sound and of the frame, by which hits are sorted: "
    "1 where both point the same way, 0 where they have nothing in common, less than 0 where they are opposed."
)


def scores_line(scores: Mapping[str, Any]) -> str:
    """What retrieval.json has of the pool, beside chance."""
    parts = []
    for name, direction in (("sound of a frame", "image_to_audio"), ("frame of a sound", "audio_to_image")):
        row = scores[direction]
        recalls = ", ".join(f"R@{k} {row[f'recall_at_{k}']:.1%}" for k in (1, 5, 10))
        parts.append(f"{name}: {recalls}, median rank {row['median_rank']:g}")
    return f"{'; '.join(parts)}; chance R@1 {scores['chance_recall_at_1']:.1%}, among {scores['pool']:,} clips"


def spread_queries(pooled: Pooled, queries: int) -> list[Query]:
    """So many queries from all over the N clips, the same each time."""
    rows = spread(queries, len(pooled.labels))
    sounds, frames = unit_rows(pooled.audio), unit_rows(pooled.image)
    by_sound = _searches(sounds[rows] @ frames.T, rows, pooled.labels)
    by_frame = _searches(frames[rows] @ sounds.T, rows, pooled.labels)
    return [Query(*parts) for parts in zip(rows, by_sound, by_frame, strict=True)]


def _searches(similarity: Tensor, rows: Sequence[int], labels: Sequence[Sequence[int]]) -> list[Search]:
    """similarity: [Q, N] of the queries that are at these rows."""
    ranks = partner_ranks(similarity, torch.tensor(rows)).tolist()
    top = similarity.topk(min(HITS, len(labels)), dim=1)
    searches = []
    for row, rank, values, columns in zip(rows, ranks, top.values.tolist(), top.indices.tolist(), strict=True):
        hits = [
            Hit(column, value, _kinship(row, column, labels)) for value, column in zip(values, columns, strict=True)
        ]
        searches.append(Search(hits, rank))
    return searches


def _kinship(row: int, column: int, labels: Sequence[Sequence[int]]) -> Kinship:
    if row == column:
        return Kinship.partner
    return Kinship.same_class if set(labels[row]) & set(labels[column]) else Kinship.other


def make_gallery(
    judged: Judged, pooled: Pooled, frames: Sequence[int], queries: int, title: str, scores: Mapping[str, Any]
) -> Gallery:
    """Search, and read what is shown: the middle one of these frames. Raises DataError for damaged clips.

    scores: as in retrieval.json.
    """
    found = spread_queries(pooled, queries)
    rows = {hit.row for query in found for search in query[1:] for hit in search.hits} | {query.row for query in found}
    source, front_end = judged.clips.at_position(frames[len(frames) // 2]), LogMel()
    clips = {}
    for row in sorted(rows):
        clip = source[int(judged.places[row])]
        length = torch.tensor([len(clip.audio)])
        log_mel = front_end(torch.tensor(clip.audio)[None], length, int(frames_of(length)))[0]  # [T, M]
        clips[row] = ShownClip(
            clip_id=clip.clip_id, source="", start_s=0.0, labels=judged.names_of(clip.labels.tolist()), flags=[],
            frames=[encode_picture(clip.frames[0], min(FRAME_PIXELS, *clip.frames.shape[1:3]), JPEG_QUALITY)],
            frame_times_s=[], audio=clip.audio, log_mel=log_mel.numpy(),
        )  # fmt: skip
    return Gallery(title, len(pooled.labels), found, clips, scores_line(scores))

"""Features of the clips of data sets, or of plain videos, to a file: one process, float32, every clip once, in order.

N clips, F positions in each, T frames at a position, La and Lv tokens of audio and frames, D width.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import DataError
from cavmae_ds.evaluation.embedding import BATCH, Embedder, Excerpt
from cavmae_ds.evaluation.excerpts import Clips, DataSets, Unusable, from_shards, from_videos, is_data_set, videos_of
from cavmae_ds.evaluation.feature_files import FeatureFile

Progress = Callable[[int, int], None]  # hears (clips done, clips in all)


class Extracted(NamedTuple):
    """What became of the inputs."""

    clips: int
    shapes: dict[str, tuple[int, ...]]
    """Of one clip's row of each array."""
    unusable: dict[str, int]
    """By the reason, most frequent first."""
    written: bool
    """There were clips, and not too many unusable ones."""


def extract(
    embedder: Embedder,
    inputs: Sequence[str],
    out: Path,
    *,
    frames: Sequence[int],
    tokens: bool,
    dtype: str,
    workers: int,
    max_bad_share: float,
    progress: Progress,
) -> Extracted:
    """Write audio [N, D] and image [N, D], or with several frames [N, F, D]; with tokens [N, La, D], [N, Lv, D] or
    [N, F, Lv, D]. And their clip ids [N].

    inputs: data sets, or videos (see videos_of). What cannot be used is named in OUT's name with .rejected.csv; if it
    is more than max_bad_share, `out` is not written. Raises ConfigError, DataError or CheckpointError.
    """
    frames = frames if embedder.sees else ()
    with FeatureFile(out, dtype) as file:
        total, clips = _open(embedder, inputs, frames, workers)
        progress(0, total)
        reasons: Counter[str] = Counter()
        with (
            closing(clips),
            written_whole(out.with_suffix(".rejected.csv")) as unfinished,
            unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as names,
        ):
            table = csv.writer(names, lineterminator="\n")
            table.writerow(Unusable._fields)
            for batch in _batches(clips):
                unusable = [one for one in batch if isinstance(one, Unusable)]
                table.writerows(unusable)
                reasons.update(one.code for one in unusable)
                if usable := [one for one in batch if isinstance(one, Excerpt)]:
                    _add(file, embedder, usable, tokens, alone=len(frames) == 1)
                progress(len(file.clip_ids) + reasons.total(), total)
        written = bool(file.clip_ids) and reasons.total() <= max_bad_share * total
        if written:
            file.write()
        return Extracted(len(file.clip_ids), file.shapes, dict(reasons.most_common()), written)


def _open(embedder: Embedder, inputs: Sequence[str], frames: Sequence[int], workers: int) -> tuple[int, Clips]:
    """How many clips there are, and the clips."""
    data_sets = [one for one in inputs if is_data_set(one)]
    if not data_sets:
        videos = videos_of(inputs)
        return len(videos), from_videos(videos, embedder.loaded.inputs, frames, embedder.settings, workers)
    if others := [one for one in inputs if one not in data_sets]:
        raise DataError(f"{data_sets[0]} is a data set and {others[0]} is not; give one kind at a time")
    clips = DataSets(data_sets, embedder.loaded.inputs, frames)
    return len(clips), from_shards(clips, workers)


def _batches(clips: Clips) -> Iterator[list[Excerpt | Unusable]]:
    while batch := list(islice(clips, BATCH)):
        yield batch


def _add(file: FeatureFile, embedder: Embedder, clips: Sequence[Excerpt], tokens: bool, alone: bool) -> None:
    """alone: one frame has no axis of its own."""
    audio, image = embedder.features(clips, tokens)
    found = {"audio": audio, "image": image if image is None or not alone else image[:, 0]}
    arrays = {name: rows.numpy() for name, rows in found.items() if rows is not None}
    file.add([clip.clip_id for clip in clips], arrays)

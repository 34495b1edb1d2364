"""One clip with some of its frames out of a local shard file: training reads what it decodes and nothing else.

A shard file (MDS) holds the number of records n, n + 1 offsets, a description, and the records back to back, each of
which is laid out as layout.py says (spec/data-path.md 5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.data.format.layout import NEWEST, Layout, layout_of
from cavmae_ds.data.format.schema import FLAC_MAGIC, audio_of, frame_jpeg, frame_times_of, no_such_frame
from cavmae_ds.errors import DataError

if TYPE_CHECKING:
    from streaming.base.format.base.reader import Reader
    from streaming.base.format.mds import MDSReader


_RANGE = struct.Struct("<2I")


class Contents(NamedTuple):
    """What is known of a record before its sound and its frames are read."""

    n_samples: int
    frame_times: NDArray[np.float32]  # [F] seconds from clip start


class Selection(NamedTuple):
    """What is read of a record."""

    frames: tuple[int, ...]  # numbers of frames, 0 ... F - 1, in the order in which they are given
    first_sample: int
    samples: int  # first_sample + samples <= n_samples


Select: TypeAlias = Callable[[Contents], Selection]


def all_audio_and(*frames: int) -> Select:
    """The whole sound and these frames of any record."""
    return lambda contents: Selection(frames, 0, contents.n_samples)


def check_columns(shard: Reader) -> None:
    """Raises DataError, naming the shard, when its records are not laid out as read_clip expects."""
    columns: Any = shard  # an MDSReader
    try:
        fitting = list(shard_layout(columns).fixed_sizes.values()) == list(columns.column_sizes)
    except ValueError:
        fitting = False
    if not fitting:
        raise DataError(
            f"shard {columns.raw_data.basename!r} has the columns {', '.join(columns.column_names)} of "
            f"{columns.column_sizes} bytes, expected {', '.join(NEWEST.fixed_sizes)} of "
            f"{list(NEWEST.fixed_sizes.values())}, or those of schema 1; prepare this data set again"
        )


def shard_layout(shard: MDSReader) -> Layout:
    """How the records of a shard lie in its file. Raises ValueError for columns that are not known."""
    return layout_of(shard.column_names, shard.column_encodings)


def shard_path(shard: MDSReader) -> str:
    """Where the file of a shard is kept."""
    return os.path.join(shard.dirname, shard.split, shard.raw_data.basename)  # noqa: PTH118  for each clip, so cheaply


def read_clip(path: str, row: int, select: Select, layout: Layout = NEWEST) -> dict[str, Any]:
    """What `select` wants of record `row` of a shard file, for the functions of data.schema; nothing else is read.

    Gives the columns clip_id, audio, n_samples, labels, frames and frame_offsets as if the record held the selected
    samples and frames alone, and frame_numbers, which those frames are. Of FLAC the whole file is read, but only the
    selected samples are decoded. Raises FileNotFoundError when there is no such file, DataError naming it when the
    record cannot be what it says, or the clip when it has no such frame.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        begin, end = _RANGE.unpack(_read(file, _RANGE.size, 4 * (1 + row)))
        sizes = layout.sizes(_read(file, layout.head.size, begin))
        starts, at = {}, begin + layout.head.size
        for name, size in sizes.items():
            starts[name] = at
            at += size
        if at != end:
            raise ValueError(f"its columns take {at - begin} bytes, the record has {end - begin}")

        def columns(first: str, stop: str) -> tuple[bytes, int]:
            return _read(file, starts[stop] - starts[first], starts[first]), starts[first]

        small, at = columns("clip_id", "frames")
        clip_id = small[: sizes["clip_id"]].decode()
        offsets = np.frombuffer(small, "<u4", sizes["frame_offsets"] // 4, starts["frame_offsets"] - at).tolist()
        times = np.frombuffer(small, "<f4", sizes["frame_times"] // 4, starts["frame_times"] - at)
        if len(offsets) != len(times) + 1:
            raise ValueError(f"clip {clip_id!r} has {len(offsets)} offsets and {len(times)} times of frames")
        rest, at = columns("labels", "source")
        n_samples = int.from_bytes(rest[starts["n_samples"] - at :], "little")
        wanted = select(Contents(n_samples, times))
        audio = _read_audio(file, starts["audio"], sizes["audio"], clip_id, n_samples, wanted)
        jpegs = []
        for frame in wanted.frames:
            if not 0 <= frame < len(times):
                raise no_such_frame(clip_id, frame, len(times))
            first, stop = offsets[frame : frame + 2]
            if not first < stop <= sizes["frames"]:
                raise ValueError(
                    f"clip {clip_id!r} keeps frame {frame} at bytes {first} to {stop} of {sizes['frames']}"
                )
            jpegs.append(_read(file, stop - first, starts["frames"] + first))
    except (ValueError, OverflowError, struct.error) as error:  # times that are no numbers, too
        raise DataError(
            f"record {row} of shard file {path!r} is damaged ({error}); prepare this data set again"
        ) from error
    finally:
        os.close(file)
    return _selected(clip_id, audio, rest[: sizes["labels"]], jpegs, wanted)


def _read_audio(file: int, start: int, size: int, clip_id: str, n_samples: int, wanted: Selection) -> bytes:
    """The column `audio`: as it is stored if all of it is wanted, otherwise little-endian int16 of the samples."""
    if wanted.samples == 0:
        return b""
    if (wanted.first_sample, wanted.samples) == (0, n_samples):
        return _read(file, size, start)
    if size == 2 * n_samples and _read(file, len(FLAC_MAGIC), start) != FLAC_MAGIC:
        return _read(file, 2 * wanted.samples, start + 2 * wanted.first_sample)
    stored = {"clip_id": clip_id, "audio": _read(file, size, start), "n_samples": n_samples}
    return audio_of(stored, wanted.first_sample, wanted.samples).astype("<i2").tobytes()


def select_from(sample: Mapping[str, Any], select: Select) -> dict[str, Any]:
    """What read_clip gives of a record, from all of its columns. Raises DataError, naming the clip, if damaged."""
    wanted = select(Contents(int(sample["n_samples"]), frame_times_of(sample)))
    jpegs = [frame_jpeg(sample, frame) for frame in wanted.frames]
    audio = audio_of(sample, wanted.first_sample, wanted.samples) if wanted.samples else np.empty(0, np.int16)
    return _selected(sample["clip_id"], audio.astype("<i2").tobytes(), sample["labels"], jpegs, wanted)


def _selected(clip_id: str, audio: bytes, labels: bytes, jpegs: list[bytes], wanted: Selection) -> dict[str, Any]:
    return {
        "clip_id": clip_id,
        "audio": audio,
        "n_samples": wanted.samples,
        "labels": labels,
        "frames": b"".join(jpegs),
        "frame_offsets": list(accumulate(map(len, jpegs), initial=0)),
        "frame_numbers": wanted.frames,
    }


def _read(file: int, size: int, at: int) -> bytes:
    """Exactly so many bytes. Raises ValueError when the file ends before."""
    content = os.pread(file, size, at)
    if len(content) != size:
        raise ValueError(f"the file ends {size - len(content)} bytes early")
    return content

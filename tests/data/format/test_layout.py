"""Records of every schema are read alike, by place and frame by frame, and a clip may lack sound or picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from cavmae_ds.data.format.layout import NEWEST, layout_of
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import (
    COLUMNS_WITH_TARGETS,
    MDS_COLUMNS,
    ClipRecord,
    audio_of,
    frame_count,
    frame_jpeg,
    frame_of,
    frame_times_of,
    labels_of,
)
from cavmae_ds.data.format.shard_file import Selection, all_audio_and, check_columns, read_clip, shard_layout
from cavmae_ds.data.format.targets import Target, pack_targets, targets_of
from cavmae_ds.errors import DataError
from tests.data.format.test_schema import jpeg_of, record
from tests.data.stock_reader import StockReader

SCHEMA_1 = Path(__file__).parents[2] / "golden" / "run_of_16bcd9e" / "shards"


def clip(frames: int, samples: int = 1000, **changes) -> ClipRecord:
    """A clip with this many frames and samples."""
    return replace(
        record(samples=samples),
        audio=np.arange(samples, dtype=np.int16),
        frames=tuple(jpeg_of((k, 100, 50)) for k in range(frames)),
        frame_times=tuple(0.125 * k for k in range(frames)),
        **changes,
    )


def shard_of(folder: Path, clips: list[ClipRecord], columns=MDS_COLUMNS, codec="pcm16") -> str:
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for each in clips:
            writer.write(each.to_mds(codec))
    return str(folder / "shard.00000.mds")


def assert_holds(sample, expected: ClipRecord) -> None:
    """Whether a sample gives back a whole record."""
    assert np.array_equal(audio_of(sample), expected.audio) and audio_of(sample).dtype == np.int16
    assert [frame_jpeg(sample, k) for k in range(frame_count(sample))] == list(expected.frames)
    assert frame_times_of(sample).tolist() == list(expected.frame_times)
    assert np.array_equal(labels_of(sample), expected.labels)


@pytest.mark.parametrize("codec", ["pcm16", "flac"])
@pytest.mark.parametrize(("frames", "samples"), [(0, 1000), (1, 1000), (7, 1000), (80, 1000), (3, 0), (0, 0)])
def test_clips_with_any_number_of_frames_and_without_sound_or_picture_read_back(tmp_path, frames, samples, codec):
    written = clip(frames, samples)
    path = shard_of(tmp_path / "shards", [record(), written], codec=codec)

    streamed = StockReader(tmp_path / "shards")[1]
    selected = read_clip(path, 1, lambda all_of_it: Selection(tuple(range(frames)), 0, all_of_it.n_samples))

    assert_holds(written.to_mds(codec), written)
    assert_holds(streamed, written)
    assert np.array_equal(audio_of(selected), written.audio)
    assert [frame_jpeg(selected, k) for k in range(frames)] == list(written.frames)


def test_a_frame_that_a_clip_does_not_have_is_refused_by_its_name(tmp_path):
    path = shard_of(tmp_path / "shards", [clip(4), clip(0)])

    for row, frame, words in ((0, 4, "has 4 frames, so no frame 4"), (1, 0, "has 0 frames, so no frame 0")):
        with pytest.raises(DataError, match=f"clip 'a/b ü' {words}; prepare"):
            read_clip(path, row, all_audio_and(frame))
        with pytest.raises(DataError, match=f"clip 'a/b ü' {words}; prepare"):
            frame_of(StockReader(tmp_path / "shards")[row], frame)


@pytest.mark.parametrize(("column", "cut"), [("frame_times", 4), ("frame_offsets", 4), ("frame_offsets", 24)])
def test_offsets_and_times_of_other_numbers_of_frames_are_refused(tmp_path, column, cut):
    sample = clip(5).to_mds()
    with MDSWriter(out=str(tmp_path / "shards"), columns=MDS_COLUMNS) as writer:
        writer.write(sample | {column: sample[column][:-cut]})

    with pytest.raises(
        DataError, match=r"record 0 of shard file .* is damaged \(clip 'a/b ü' has \d offsets and \d times"
    ):
        read_clip(str(tmp_path / "shards" / "shard.00000.mds"), 0, all_audio_and(0))


def test_records_of_schema_1_are_those_that_streaming_gives():
    streamed = StockReader(SCHEMA_1)
    [shard] = streamed.shards
    check_columns(shard)
    path = SCHEMA_1 / "part-00000" / "shard.00000.mds"
    records = Records(str(SCHEMA_1))

    assert (records.manifest.schema_version, records.manifest.require, len(records)) == (1, "both", 6)
    for row, found in enumerate(records.read(range(6))):
        assert all(np.array_equal(found[column], streamed[row][column]) for column in found)
        assert (frame_count(found), frame_times_of(found).dtype) == (10, np.float32)
        for frame in range(10):
            one = read_clip(str(path), row, all_audio_and(frame), shard_layout(shard))
            assert np.array_equal(audio_of(one), audio_of(found))
            assert np.array_equal(frame_of(one, 0), frame_of(found, frame))


def test_a_data_set_may_have_targets_beside_all_that_others_have(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    written = [clip(2, targets=pack_targets([Target(0.5, mask)])), clip(2, targets=pack_targets([]))]
    path = shard_of(tmp_path / "shards", written, COLUMNS_WITH_TARGETS)
    streamed = StockReader(tmp_path / "shards")
    [shard] = streamed.shards

    check_columns(shard)
    content = Path(path).read_bytes()
    begin, end = np.frombuffer(content[4:12], "<u4").tolist()
    for sample in (streamed[0], shard_layout(shard).decode(content[begin:end])):
        assert_holds(sample, written[0])
        [target] = targets_of(sample)
        assert target.time_s == 0.5 and np.array_equal(target.mask, mask)
    assert targets_of(streamed[1]) == []
    assert frame_jpeg(read_clip(path, 1, all_audio_and(1), shard_layout(shard)), 0) == written[1].frames[1]


def test_columns_that_no_schema_has_are_refused_with_those_that_are_known():
    names, encodings = list(NEWEST.encodings), list(NEWEST.encodings.values())

    assert layout_of(names, encodings) is NEWEST
    for other in ((names[::-1], encodings[::-1]), (names[:-1], encodings[:-1]), (names, ["pkl"] * 10), ([], [])):
        with pytest.raises(ValueError, match=r"expected audio bytes, clip_id str, .* or those of schema 1"):
            layout_of(*other)

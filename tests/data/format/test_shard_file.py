"""What is read of a shard file for one frame is what streaming reads of it, and damage is named, never guessed at."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import MDSWriter

from cavmae_ds.data.format.schema import MDS_COLUMNS, audio_of, frame_jpeg, frame_of, frame_times_of, labels_of
from cavmae_ds.data.format.shard_file import Selection, all_audio_and, check_columns, read_clip
from cavmae_ds.errors import DataError
from tests.data.format.test_schema import record
from tests.data.stock_reader import StockReader

CLIPS = 24
rows, frames = st.integers(0, CLIPS - 1), st.integers(0, 9)


@pytest.fixture(scope="module")
def streamed(tiny_shards):
    return StockReader(tiny_shards)


@pytest.fixture(scope="module")
def shard(tiny_shards):
    return tiny_shards / "part-00000" / "shard.00000.mds"


def same(found, expected, frame: int) -> bool:
    """Whether both give the same clip to whoever decodes this frame."""
    return (
        found["clip_id"] == expected["clip_id"]
        and np.array_equal(audio_of(found), audio_of(expected))
        and np.array_equal(labels_of(found), labels_of(expected))
        and frame_jpeg(found, 0) == frame_jpeg(expected, frame)
    )


@given(rows, frames)
def test_a_clip_with_one_frame_is_what_streaming_reads(streamed, shard, row, frame):
    found = read_clip(str(shard), row, all_audio_and(frame))
    assert same(found, streamed[row], frame)
    assert len(found["frames"]) == len(frame_jpeg(found, 0))  # this frame and no other


def test_clips_kept_as_flac_without_labels_or_with_many_are_read_as_well(tmp_path):
    with MDSWriter(out=str(tmp_path / "flac"), columns=MDS_COLUMNS) as writer:
        for labels in ((), (3,), range(20)):
            writer.write(record(labels).to_mds("flac"))
    streamed = StockReader(tmp_path / "flac")
    for row in range(3):
        found = read_clip(str(tmp_path / "flac" / "shard.00000.mds"), row, all_audio_and(9))
        assert found["audio"].startswith(b"fLaC") and same(found, streamed[row], 9)


@pytest.mark.parametrize("codec", ["pcm16", "flac"])
def test_a_window_of_sound_and_several_frames_are_those_of_the_whole_record(tmp_path, codec):
    whole = record((3, 1), samples=20_000)
    with MDSWriter(out=str(tmp_path / codec), columns=MDS_COLUMNS) as writer:
        writer.write(whole.to_mds(codec))
    path = str(tmp_path / codec / "shard.00000.mds")
    for frames, first, samples in (((2, 3, 9), 7_001, 4_000), ((5, 5, 0), 0, 1), ((), 19_999, 1), ((1,), 300, 0)):
        found = read_clip(path, 0, lambda _: Selection(frames, first, samples))  # noqa: B023
        assert np.array_equal(audio_of(found), whole.audio[first : first + samples])
        assert [frame_jpeg(found, k) for k in range(len(frames))] == [whole.frames[frame] for frame in frames]
        with pytest.raises(DataError, match=f"has {len(frames)} frames, so no frame {len(frames)}"):
            frame_jpeg(found, len(frames))


def test_the_length_of_the_sound_and_the_times_of_the_frames_decide_what_is_read(streamed, shard):
    asked = []

    def last_frame_alone(contents):
        asked.append(contents)
        return Selection((len(contents.frame_times) - 1,), contents.n_samples - 1, 1)

    found = read_clip(str(shard), 7, last_frame_alone)
    assert frame_jpeg(found, 0) == frame_jpeg(streamed[7], 9)
    assert audio_of(found) == audio_of(streamed[7])[-1:]
    assert asked[0].n_samples == streamed[7]["n_samples"]
    assert np.array_equal(asked[0].frame_times, frame_times_of(streamed[7]))


def test_six_reads_take_one_frame_and_the_sound_and_a_window_takes_no_more_of_the_file_than_it_uses(
    streamed, shard, monkeypatch
):
    sizes, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: sizes.append(size) or pread(file, size, at))
    sample = streamed[4]
    read_clip(str(shard), 4, all_audio_and(6))
    assert len(sizes) == 6
    assert sum(sizes) < len(sample["audio"]) + len(frame_jpeg(sample, 6)) + 300
    sizes.clear()
    read_clip(str(shard), 4, lambda _: Selection((2, 8), 1000, 500))
    assert sum(sizes) < 2 * 500 + len(frame_jpeg(sample, 2)) + len(frame_jpeg(sample, 8)) + 300


def test_a_window_of_damaged_flac_names_the_clip_and_a_frame_that_does_not_decode_its_number(tmp_path):
    sample = record((3, 1), samples=20_000).to_mds("flac")
    sample["audio"] = sample["audio"][:200]
    sample["frames"] = sample["frames"].replace(b"\xff\xd8", b"\xff\xd9")
    with MDSWriter(out=str(tmp_path / "broken"), columns=MDS_COLUMNS) as writer:
        writer.write(sample)
    path = str(tmp_path / "broken" / "shard.00000.mds")
    with pytest.raises(DataError, match="clip 'a/b ü' has 200 bytes of sound that are not 20000 samples"):
        read_clip(path, 0, lambda _: Selection((), 15_000, 500))
    with pytest.raises(DataError, match="clip 'a/b ü' keeps a frame 4 that does not decode"):
        frame_of(read_clip(path, 0, lambda _: Selection((1, 4), 0, 0)), 1)


@settings(max_examples=300)
@given(row=rows, frame=frames, place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_near_the_sizes_is_refused_or_harmless(
    streamed, shard, tmp_path_factory, row, frame, place, value
):
    content = bytearray(shard.read_bytes())
    begin = int(np.frombuffer(content[4 * (1 + row) :][:4], "<u4")[0])
    # the record's place in the head of the file, then its sizes and the first bytes of its sound
    at = 4 * (1 + row) + place if place < 8 else begin + place - 8
    content[at] = value
    spoiled = tmp_path_factory.getbasetemp() / "spoiled.mds"
    spoiled.write_bytes(content)
    try:
        found = read_clip(str(spoiled), row, all_audio_and(frame))
    except DataError as error:
        assert f"record {row} of shard file {str(spoiled)!r} is damaged" in str(error)
    else:
        sound = len(streamed[row]["audio"])
        assert frame_jpeg(found, 0) == frame_jpeg(streamed[row], frame)
        assert len(found["audio"]) == sound


@pytest.mark.parametrize("keep", [0, 3, 60, 5_000, -40])
def test_a_file_that_ends_early_is_named(shard, tmp_path, keep):
    cut = tmp_path / "cut.mds"
    cut.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"record 23 of shard file .*cut.mds.* ends \d+ bytes early"):
        read_clip(str(cut), CLIPS - 1, all_audio_and(9))


def test_frame_offsets_that_cannot_be_name_the_clip(streamed, shard, tmp_path):
    spoiled = shutil.copy(shard, tmp_path / "spoiled.mds")
    content = bytearray(spoiled.read_bytes())
    offsets = streamed[5]["frame_offsets"]
    at = content.index(offsets)
    content[at + 4 * 3 : at + 4 * 4] = (2**31).to_bytes(4, "little")
    spoiled.write_bytes(content)
    name = streamed[5]["clip_id"]
    with pytest.raises(DataError, match=f"clip '{name}' keeps frame 3 at bytes 2147483648"):
        read_clip(str(spoiled), 5, all_audio_and(3))
    assert same(read_clip(str(spoiled), 5, all_audio_and(5)), streamed[5], 5)  # its other frames are there


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_clip(str(tmp_path / "shard.00000.mds"), 0, all_audio_and(0))


def test_the_columns_of_our_shards_fit_and_others_are_refused_by_name(streamed, tmp_path):
    for reader in streamed.shards:
        check_columns(reader)
    with MDSWriter(out=str(tmp_path / "other"), columns={"audio": "bytes", "text": "str"}) as writer:
        writer.write({"audio": b"1", "text": "a"})
    (other,) = StockReader(tmp_path / "other").shards
    with pytest.raises(DataError, match=r"has the columns audio, text of .* expected audio, clip_id"):
        check_columns(other)

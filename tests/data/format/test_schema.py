"""Records survive the way through a shard, and damage is noticed and named."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from streaming import MDSWriter

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.schema import (
    MDS_COLUMNS,
    ClipFlag,
    ClipRecord,
    audio_of,
    decode_frame,
    frame_jpeg,
    frame_of,
    frame_times_of,
    labels_of,
)
from cavmae_ds.errors import DataError
from tests.data.stock_reader import StockReader


def jpeg_of(value, mode="RGB", size=(48, 32)):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def record(labels=(3, 1), samples=1000):
    return ClipRecord(
        clip_id="a/b ü",
        source="a/b ü.mp4",
        start_s=1.25,
        audio=np.arange(-500, samples - 500, dtype=np.int16),
        frames=tuple(jpeg_of((20 * k, 100, 50)) for k in range(10)),
        frame_times=tuple(0.5 * k for k in range(10)),
        labels=np.array(labels, np.int32),
        flags=ClipFlag.SHORT | ClipFlag.ROTATED,
    )


@given(st.lists(st.integers(0, 2**31 - 1), max_size=5), st.integers(400, 2000))
def test_sound_and_labels_read_back_as_they_were_written(labels, samples):
    written = record(labels, samples)

    sample = written.to_mds()

    np.testing.assert_array_equal(audio_of(sample), written.audio)
    np.testing.assert_array_equal(labels_of(sample), written.labels)
    assert audio_of(sample).dtype == np.int16
    assert labels_of(sample).dtype == np.int32


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=400, max_size=1000))
def test_flac_gives_back_every_sample(samples):
    written = replace(record(), audio=np.array(samples, np.int16))

    sample = written.to_mds("flac")

    assert sample["audio"].startswith(b"fLaC")
    np.testing.assert_array_equal(audio_of(sample), written.audio)
    assert audio_of(sample).dtype == np.int16


def test_plain_samples_that_begin_like_a_flac_file_are_read_as_samples():
    audio = np.concatenate([np.frombuffer(b"fLaC", "<i2"), np.arange(1000, dtype=np.int16)])

    np.testing.assert_array_equal(audio_of(replace(record(), audio=audio).to_mds()), audio)


@pytest.mark.parametrize("spoil", [lambda flac: flac[:60], lambda flac: b"fLaC" + bytes(500)])
def test_a_flac_record_that_is_not_whole_is_refused_by_its_clip_id(spoil):
    sample = record(samples=2000).to_mds("flac")
    sample["audio"] = spoil(sample["audio"])

    with pytest.raises(DataError, match=r"a/b ü.*not 2000 samples"):
        audio_of(sample)


def test_a_record_survives_the_way_through_a_shard(tmp_path):
    written = [record(), record(labels=())]
    with MDSWriter(out=str(tmp_path / "shards"), columns=MDS_COLUMNS) as writer:
        for each in written:
            writer.write(each.to_mds())

    read = StockReader(tmp_path / "shards")

    for sample, each in zip(read, written, strict=True):
        assert (sample["clip_id"], sample["source"], sample["start_s"]) == ("a/b ü", "a/b ü.mp4", 1.25)
        assert ClipFlag(int(sample["flags"])) == ClipFlag.SHORT | ClipFlag.ROTATED
        assert [frame_jpeg(sample, k) for k in range(10)] == list(each.frames)
        np.testing.assert_array_equal(audio_of(sample), each.audio)
        np.testing.assert_array_equal(labels_of(sample), each.labels)
        np.testing.assert_allclose(frame_times_of(sample), each.frame_times)


def test_a_decoded_frame_is_what_pil_makes_of_the_same_file():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)

    np.testing.assert_array_equal(decode_frame(buffer.getvalue()), np.asarray(Image.open(buffer)))


@pytest.mark.parametrize(("mode", "value"), [("L", 120), ("CMYK", (0, 0, 0, 135)), ("RGB", (120, 120, 120))])
def test_grey_and_cmyk_files_become_rgb(mode, value):
    frame = decode_frame(jpeg_of(value, mode))

    assert frame.shape == (32, 48, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_allclose(frame, 120, atol=3)


@pytest.mark.parametrize("keep", [0, 1, 10, -1, -200])
def test_a_frame_that_is_not_whole_is_refused(keep):
    whole = jpeg_of((200, 100, 50), size=(200, 200))

    with pytest.raises(DataError, match="not a whole JPEG"):
        decode_frame(whole[:keep] if keep else b"not a picture")


@pytest.mark.parametrize(
    ("column", "spoil", "read"),
    [
        ("audio", lambda audio: audio[:-2], audio_of),
        ("labels", lambda labels: labels[:-1], labels_of),
        ("frame_offsets", lambda offsets: offsets[::-1], lambda sample: frame_of(sample, 0)),
        ("frame_offsets", lambda offsets: offsets[:-1], lambda sample: frame_of(sample, 0)),
        ("frame_offsets", lambda offsets: b"\xff" * len(offsets), lambda sample: frame_of(sample, 3)),
        ("frame_offsets", lambda offsets: offsets[:8], lambda sample: frame_of(sample, 1)),
        ("frame_times", lambda times: times[:-4], frame_times_of),
        ("frames", lambda frames: bytes(len(frames)), lambda sample: frame_of(sample, 9)),
    ],
)
def test_a_damaged_record_is_refused_by_its_clip_id(column, spoil, read):
    sample = record().to_mds()
    sample[column] = spoil(sample[column])

    with pytest.raises(DataError, match="a/b ü"):
        read(sample)


def test_a_manifest_reads_back_and_names_the_field_that_does_not_fit():
    manifest = Manifest(
        channel="first",
        clip_seconds=10,
        frame_size=224,
        jpeg_quality=90,
        classes=("cat", "dog"),
        clips=7,
        rejected={"no_audio": 2},
        tool_versions={"av": "18.1.0"},
    )
    content = manifest.model_dump_json().encode()

    assert Manifest.read(content) == manifest
    older = json.loads(content)
    for added_later in ("windows", "frame_rule", "class_ids", "require", "short_side", "frames_per_second"):
        del older[added_later]
    assert Manifest.read(json.dumps(older).encode()) == manifest
    for before, after, complaint in (
        (b'"schema_version":2', b'"schema_version":3', "schema_version"),
        (b'"frame_size":224', b'"frame_size":"big"', "frame_size.*'big'"),
        (b'"clips":7', b'"films":7', "clips"),
        (b"{", b"", "the file"),
    ):
        with pytest.raises(DataError, match=complaint):
            Manifest.read(content.replace(before, after))

"""A manifest says what its schema can say, and a model is given no clips that lack what it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.errors import DataError

SCHEMA_1 = Path(__file__).parents[2] / "golden" / "run_of_16bcd9e" / "shards"
PLAIN = {
    "channel": "first",
    "clip_seconds": 10.0,
    "frame_size": 224,
    "jpeg_quality": 90,
    "classes": [],
    "clips": 7,
    "rejected": {},
    "tool_versions": {},
}


def read(**changes) -> Manifest:
    return Manifest.read(json.dumps(PLAIN | changes).encode())


def test_a_manifest_of_schema_1_reads_as_ten_square_frames_and_both_parts():
    manifest = Manifest.read((SCHEMA_1 / "manifest.json").read_bytes())

    assert manifest.schema_version == 1
    assert (manifest.frames_per_clip, manifest.frames_per_second) == (10, None)
    assert (manifest.frame_size, manifest.short_side, manifest.require) == (32, None, "both")
    assert (manifest.clips_without_audio, manifest.clips_without_frames) == (0, 0)


def test_whole_frames_at_a_rate_and_clips_that_lack_a_part_are_said():
    manifest = read(
        frame_size=None, short_side=256, frames_per_clip=None, frames_per_second=8, require="audio",
        clips_without_frames=2,
    )  # fmt: skip

    assert (manifest.schema_version, manifest.short_side, manifest.frames_per_second) == (2, 256, 8.0)
    assert Manifest.read(manifest.model_dump_json().encode()) == manifest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"short_side": 256}, "one of frame_size and short_side"),
        ({"frame_size": None}, "one of frame_size and short_side"),
        ({"frames_per_second": 8.0}, "one of frames_per_clip and frames_per_second"),
        ({"frames_per_clip": None}, "one of frames_per_clip and frames_per_second"),
        ({"frames_per_clip": 0}, "frames_per_clip"),
        ({"require": "smell"}, "require"),
        ({"clips_without_audio": 8}, "more clips lack a part than there are"),
        ({"schema_version": 1, "frames_per_clip": 12}, "schema 1 has 10 square frames"),
        ({"schema_version": 1, "clips_without_audio": 1}, "schema 1 has 10 square frames"),
        ({"schema_version": 3}, "schema_version"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(DataError, match=f"manifest.json does not describe .*{words}"):
        read(**changes)


@pytest.fixture
def shards_with(tmp_path, tiny_shards):
    """The 24 clips under another manifest."""

    def rewritten(**changes) -> str:
        copied = shutil.copytree(tiny_shards, tmp_path / "copied", dirs_exist_ok=True)
        values = json.loads((copied / "manifest.json").read_text()) | changes
        (copied / "manifest.json").write_text(json.dumps(values))
        return str(copied)

    return rewritten


def test_a_model_gets_clips_that_have_what_it_reads_or_a_sentence(shards_with):
    deaf = shards_with(clips_without_audio=3)
    assert check_shards(deaf, 64, reads_audio=False).tolist() == [24]
    with pytest.raises(DataError, match=r"3 of 24 clips in .* have no sound, .*--require audio or both"):
        check_shards(deaf, 64)

    blind = shards_with(clips_without_frames=24)
    assert check_shards(blind, None).tolist() == [24]
    with pytest.raises(DataError, match=r"24 of 24 clips in .* have no frames, .*--require video or both"):
        check_shards(blind, 64)


def test_whole_frames_serve_models_that_are_no_larger_and_square_cuts_those_of_their_size(shards_with):
    whole = shards_with(frame_size=None, short_side=96)
    assert [check_shards(whole, size).tolist() for size in (32, 64, 96, None)] == [[24]] * 4
    with pytest.raises(
        DataError, match=r"short side is 96 pixels, model.image_size is 128; .*--short-side 128 or more"
    ):
        check_shards(whole, 128)

    square = shards_with(frame_size=96, short_side=None)
    for size in (64, 128):
        with pytest.raises(DataError, match=f"frames of 96 pixels, .* --frame-size {size}"):
            check_shards(square, size)

"""Data sets of clips that differ in what they hold: counted, listed, shown, measured, exported and streamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.crop import centre_crop
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import ClipFlag, audio_of, decode_frame, frame_count, frame_jpeg, frame_of
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.inspect.contact_sheet import draw_sheet, spread_clips
from cavmae_ds.data.inspect.inspection import inspect_data_set
from cavmae_ds.data.inspect.page import html_page
from cavmae_ds.data.inspect.statistics import clip_sums
from cavmae_ds.data.inspect.summary import summary
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.stream import ClipStream, training_loader
from cavmae_ds.data.official.exporting import create_official
from cavmae_ds.data.prepare.building import PartsMissing, Share
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from cavmae_ds.errors import DataError
from tests.data.inspect.test_inspect import Page, rows_of
from tests.data.media_files import numbered_frame, numbered_video, tone, write_media
from tests.data.official_files import official_clips
from tests.data.prepare.test_prepare import contents, rejections_in
from tests.ranks import fork_cavmae

WIDE = PrepareSettings(short_side=72, frames_per_second=5, require="audio", inputs_per_part=2)
SCHEMA_1 = Path(__file__).parents[1] / "golden" / "run_of_16bcd9e" / "shards"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two wide videos of two and three seconds, a sound without a picture, and a picture without a sound."""
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("a", 2), ("d", 3)):
        frames = [numbered_frame(k, 72, 144) for k in range(10 * seconds)]
        write_media(folder / f"{name}.mkv", frames=frames, sound=tone(440, seconds))
    write_media(folder / "b.mkv", sound=tone(300, 2))
    write_media(folder / "c.mkv", frames=[numbered_frame(k, 72, 144) for k in range(20)])
    return folder


@pytest.fixture(scope="module")
def wide(videos, tmp_path_factory):
    """Whole frames at five a second; every clip has sound, one has no picture."""
    out = tmp_path_factory.mktemp("wide") / "shards"
    prepare(videos, out, WIDE, workers=1, max_bad_share=0.5)
    return out


def records_of(address) -> list[dict]:
    records = Records(str(address))
    return list(records.read(range(len(records))))


def manifest_of(out) -> Manifest:
    return Manifest.read((out / "manifest.json").read_bytes())


def test_the_manifest_counts_what_clips_lack_and_says_how_frames_were_made(videos, wide, tmp_path):
    manifest = manifest_of(wide)

    assert [(sample["clip_id"], frame_count(sample)) for sample in records_of(wide)] == [("a", 10), ("b", 0), ("d", 15)]
    assert decode_frame(frame_jpeg(records_of(wide)[0], 9)).shape == (72, 144, 3)
    assert (manifest.schema_version, manifest.clips, manifest.require) == (2, 3, "audio")
    assert (manifest.clips_without_audio, manifest.clips_without_frames) == (0, 1)
    assert (manifest.frame_size, manifest.short_side) == (None, 72)
    assert (manifest.frames_per_clip, manifest.frames_per_second) == (None, 5.0)
    assert rejections_in(wide) == {"c.mkv": "no_audio"}

    prepare(videos, tmp_path / "seen", PrepareSettings(frames=3, require="video"), workers=1, max_bad_share=0.5)
    seen = manifest_of(tmp_path / "seen")
    assert (seen.clips, seen.clips_without_audio, seen.clips_without_frames) == (3, 1, 0)
    assert (seen.frame_size, seen.frames_per_clip, seen.frames_per_second) == (224, 3, None)


def test_plain_settings_make_ten_square_frames_as_ever(videos, tmp_path):
    prepare(videos, tmp_path / "out", PrepareSettings(), workers=1, max_bad_share=0.5)

    manifest = manifest_of(tmp_path / "out")
    assert rejections_in(tmp_path / "out") == {"b.mkv": "no_video", "c.mkv": "no_audio"}
    assert (manifest.frame_size, manifest.short_side, manifest.require) == (224, None, "both")
    assert (manifest.frames_per_clip, manifest.frames_per_second) == (10, None)
    for sample in records_of(tmp_path / "out"):
        assert [frame_of(sample, k).shape for k in range(10)] == [(224, 224, 3)] * 10


@pytest.mark.parametrize(
    "changed", [{"frames_per_second": 6}, {"short_side": 64}, {"require": "both"}, {"short_side": None}]
)
def test_other_frames_or_parts_are_refused_where_a_data_set_was_begun(videos, wide, changed):
    before = contents(wide)

    with pytest.raises(DataError, match=f"{next(iter(changed))} .* then, .* now.*another --out"):
        prepare(videos, wide, WIDE.model_copy(update=changed), workers=1)

    assert contents(wide) == before
    assert prepare(videos, wide, WIDE, workers=1).finished_before


def test_parts_of_an_older_version_are_not_mixed_with_new_ones_but_a_whole_data_set_is_left_alone(videos, tmp_path):
    # Given what an older version left: its plan knows neither a schema nor the settings that came with it
    out = tmp_path / "out"
    prepare(videos, out, PrepareSettings(), workers=1, max_bad_share=0.5)
    plan = json.loads((out / "prepare.json").read_text())
    for added in ("schema of the records", "frames", "frames_per_second", "short_side", "require"):
        del plan[added]
    (out / "prepare.json").write_text(json.dumps(plan))

    assert prepare(videos, out, PrepareSettings(), workers=1).finished_before
    (out / "index.json").unlink()
    with pytest.raises(DataError, match=r"begun by another version, whose records have schema 1, not 2.*another --out"):
        prepare(videos, out, PrepareSettings(), workers=1)


def test_several_machines_make_the_same_bytes_as_one(videos, wide, tmp_path):
    first = prepare(videos, tmp_path / "out", WIDE, workers=1, share=Share(1, 2), max_bad_share=0.5)
    second = prepare(videos, tmp_path / "out", WIDE, workers=1, share=Share(0, 2), max_bad_share=0.5)

    assert isinstance(first, PartsMissing) and not isinstance(second, PartsMissing)
    assert contents(tmp_path / "out") == contents(wide)


def test_the_command_takes_frames_sides_and_parts_and_refuses_what_contradicts(videos, tmp_path):
    shared = ("prepare", videos, "--out", tmp_path / "out", "--workers", 1, "--max-bad", 0.5)
    made = fork_cavmae(*shared, "--frames", 4, "--short-side", 32, "--require", "video", "--frame-rule", "time")
    contradictions = {
        ("--frames", 4, "--frames-per-second", 2): "--frames and --frames-per-second were both given",
        ("--frame-size", 64, "--short-side", 64): "--frame-size and --short-side were both given",
        ("--frame-rule", "official", "--frames", 5): "--frame-rule official picks ten frames",
        ("--frame-rule", "official", "--frames-per-second", 5): "--frame-rule official picks ten frames",
    }

    assert made.returncode == 0, made.stderr
    assert [frame_count(sample) for sample in records_of(tmp_path / "out")] == [4, 4, 4]
    assert [frame_of(sample, 3).shape for sample in records_of(tmp_path / "out")] == [(32, 64, 3)] * 3
    for options, words in contradictions.items():
        refused = fork_cavmae(*shared, *options)
        assert refused.returncode == 2
        assert refused.stderr.startswith("cavmae: error: ") and words in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_an_inspection_shows_what_there_is(wide):
    records = Records(str(wide))
    found = inspect_data_set(records, verify=True)
    shown = spread_clips(records, 3)
    page = Page(html_page("wide", summary(found), found.faults, shown))

    assert found.faults == []
    assert found.flags[ClipFlag.NO_PICTURE] == 1
    assert rows_of(found, "unusual clips")["no picture"] == "1 (33.3%)"
    assert rows_of(found, "data set")["frames"].startswith("5 a second of whole pictures, short side 72 pixels, ")
    assert rows_of(found, "data set")["every clip has"] == "sound"
    first, blind, last = records_of(wide)
    assert page.files("image/jpeg") == [
        *(frame_jpeg(first, k) for k in (0, 3, 6, 9)), *(frame_jpeg(last, k) for k in (0, 4, 9, 14)),
    ]  # fmt: skip
    assert len(page.files("audio/wav")) == 3
    assert [len(clip.frames) for clip in shown] == [4, 0, 4] and len(shown[1].audio) == blind["n_samples"]
    assert len(draw_sheet(shown, "three").subfigs) == 3


def test_clips_without_sound_are_shown_in_silence_and_not_measured(videos, tmp_path):
    prepare(videos, tmp_path / "seen", PrepareSettings(frames=2, require="video"), workers=1, max_bad_share=0.5)
    records = Records(str(tmp_path / "seen"))
    found, shown = inspect_data_set(records), spread_clips(records, 3)
    page = Page(html_page("seen", summary(found), found.faults, shown))

    assert rows_of(found, "unusual clips")["no sound"] == "1 (33.3%)"
    assert len(page.files("audio/wav")) == 2 and len(page.files("image/jpeg")) == 6
    assert len(draw_sheet(shown, "three").subfigs) == 3
    assert [section.note for section in summary(found) if section.title == "length of clips"] == [
        "shortest 2.00 s, mean 2.50 s, longest 3.00 s"
    ]
    measured = clip_sums(records, range(3), torch.device("cpu")).statistics()
    heard = clip_sums(records, [0, 2], torch.device("cpu")).statistics()
    assert measured == heard and measured.clips == 2
    with pytest.raises(DataError, match=r"none of 1 clips in .* has sound"):
        clip_sums(records, [1], torch.device("cpu"))


def test_an_export_takes_ten_frames_of_each_clip_that_has_both_parts(wide, videos, tmp_path):
    done = fork_cavmae("create-official", wide, "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    assert "1 clips without sound or picture are left out" in done.stderr
    listing = json.loads((tmp_path / "out" / "data.json").read_text())["data"]
    assert [entry["video_id"] for entry in listing] == ["a", "d"]
    _, _, last = records_of(wide)
    written = [(tmp_path / "out" / "frames" / f"frame_{k}" / "d.jpg").read_bytes() for k in range(10)]
    assert written == [frame_jpeg(last, k) for k in (0, 1, 3, 4, 6, 7, 9, 10, 12, 13)]

    prepare(videos, tmp_path / "few", PrepareSettings(frames=4, require="video"), workers=1, max_bad_share=0.5)
    exported = create_official(str(tmp_path / "few"), tmp_path / "of few")
    assert (exported.clips, exported.left_out) == (2, 1)
    stored = records_of(tmp_path / "few")[0]
    written = [(tmp_path / "of few" / "frames" / f"frame_{k}" / "a.jpg").read_bytes() for k in range(10)]
    assert written == [frame_jpeg(stored, k) for k in (0, 0, 0, 1, 1, 2, 2, 2, 3, 3)]


def test_nothing_is_exported_of_clips_that_all_lack_a_part(tmp_path):
    (tmp_path / "videos").mkdir()
    write_media(tmp_path / "videos" / "a.mkv", sound=tone(300, 2))
    prepare(tmp_path / "videos", tmp_path / "heard", PrepareSettings(require="audio"), workers=1)

    with pytest.raises(DataError, match=r"none of 1 clips in .* has sound and picture"):
        create_official(str(tmp_path / "heard"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_schema_1_is_inspected_measured_and_exported_as_before(tmp_path):
    records = Records(str(SCHEMA_1))
    found = inspect_data_set(records, verify=True)

    assert found.faults == []
    assert rows_of(found, "data set")["frames"].startswith("10 of 32 x 32 pixels, JPEG quality 90")
    assert rows_of(found, "data set")["made by"].endswith("schema 1")
    assert len(draw_sheet(spread_clips(records, 2), "two").subfigs) == 2
    assert clip_sums(records, range(6), torch.device("cpu")).statistics().clips == 6
    assert create_official(str(SCHEMA_1), tmp_path / "out") == (6, 0, 0)
    exported = official_clips(tmp_path / "out" / "data.json", tmp_path / "out" / "class_labels.csv")
    for clip, sample in zip(exported, records.read(range(6)), strict=True):
        assert np.array_equal(clip["wave"], audio_of(sample))
        assert clip["labels"] == np.frombuffer(sample["labels"], "<i4").tolist()


def test_one_run_streams_schema_1_and_schema_2(tmp_path):
    # Given six clips of schema 1 beside two of schema 2, which keep other numbers of frames, and those whole
    for k in range(2):
        numbered_video(tmp_path / f"{k}.mkv", seconds=2.0 + k, pitch_hz=300 + 100 * k)
    newer = tmp_path / "newer"
    shutil.copytree(SCHEMA_1, tmp_path / "older")
    (tmp_path / "list.txt").write_text("0.mkv\n1.mkv\n")
    prepare(tmp_path / "list.txt", newer, PrepareSettings(short_side=40, frames_per_second=2), workers=1)
    sources = [str(tmp_path / "older"), str(newer)]
    assert [check_shards(source, 32).tolist() for source in sources] == [[6], [2]]

    # When a run goes through both
    cfg = DataConfig(sources=[{"remote": source} for source in sources], workers=1)
    inputs = InputSpec(log_mel_frames=64, frame_size=32)
    clips = ClipStream(cfg, inputs, EpochShape(1, 1, 1, 4), host=0, local_rank=0, seed=0, first_step=0)
    stored = [sample for source in sources for sample in records_of(source)]
    epoch = [batch for batch, _ in zip(training_loader(clips, cfg, torch.device("cpu")), range(2), strict=False)]

    # Then each clip comes once, with its sound and one of its frames, and none is bad
    assert sorted(int(clip) for batch in epoch for clip in batch.clip_index) == list(range(8))
    assert not any(batch.bad for batch in epoch)
    for batch in epoch:
        for row, clip in enumerate(batch.clip_index.tolist()):
            sound = batch.audio[row, : batch.n_samples[row]].numpy()
            assert np.array_equal(sound, audio_of(stored[clip]))
            frame = batch.frames[row].squeeze(0).permute(1, 2, 0).numpy()
            whole = [frame_of(stored[clip], k) for k in range(frame_count(stored[clip]))]
            assert len(whole) == (10 if clip < 6 else 4 if clip == 6 else 6)
            assert any(np.array_equal(frame, one if clip < 6 else centre_crop(one, 32)) for one in whole)

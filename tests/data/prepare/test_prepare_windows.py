"""Long videos become clips that follow one another without a gap; frames can be those of the official script."""

import csv

import numpy as np
import pytest

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, ClipFlag, audio_of, decode_frame
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.media import read_clip, split_video
from cavmae_ds.data.prepare.rejects import ClipRejected
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from tests.data.media_files import (
    cut_short,
    number_of,
    numbered_frame,
    spoil_packets,
    tone,
    write_media,
)
from tests.data.prepare.test_prepare import clips_in

WINDOWS = PrepareSettings(frame_size=72, clip_seconds=3, windows=True)


def item_of(path):
    return VideoInput(clip_id=path.stem, source=path.name, path=str(path))


def windows_of(path, settings=WINDOWS):
    """Clips by window; a rejection's code stands in for a clip."""
    found = {}
    for window in split_video(item_of(path), settings):
        try:
            found[window.shown.partition("@")[2]] = read_clip(window, settings)
        except ClipRejected as rejected:
            found[window.shown.partition("@")[2]] = rejected.code.value
    return found


def numbers_in(clip):
    return [number_of(decode_frame(jpeg)) for jpeg in clip.frames]


def noise(seconds):
    """float [n] at 16 kHz that 16 bits hold exactly."""
    return np.random.default_rng(0).integers(-30_000, 30_000, round(seconds * AUDIO_RATE_HZ)) / 32767


def long_video(path, seconds=10.5, fps=10, **options):
    frames = [numbered_frame(k) for k in range(round(seconds * fps))]
    return write_media(path, frames=frames, fps=fps, sound=noise(seconds), rate_hz=AUDIO_RATE_HZ, **options)


@pytest.mark.parametrize("key_frame_every", [1, 25, 1000])
def test_windows_follow_one_another_to_the_frame_and_to_the_sample(tmp_path, key_frame_every):
    path = long_video(tmp_path / "v.mkv", key_frame_every=key_frame_every)

    clips = windows_of(path)

    assert list(clips) == ["00000.0", "00003.0", "00006.0", "00009.0"]
    assert [clip.start_s for clip in clips.values()] == [0, 3, 6, 9]
    for k, clip in enumerate(clips.values()):
        step_s = 0.15 if k == 3 else 0.3  # the remainder lasts 1.5 s
        assert numbers_in(clip) == [int(30 * k + i * step_s * 10 + 1e-6) for i in range(10)]
        assert (ClipFlag.SHORT in clip.flags) == (k == 3)
    sound = np.concatenate([clip.audio for clip in clips.values()])
    np.testing.assert_array_equal(sound, np.round(noise(10.5) * 32767))


@pytest.mark.parametrize(("suffix", "key_frame_every"), [(".mp4", 25), (".ts", 25), (".mp4", 1000), (".avi", 1)])
def test_a_window_far_into_the_file_is_found_in_every_container(tmp_path, suffix, key_frame_every):
    # Given windows that begin after what is read in search of a key frame, so that the reader jumps
    path = long_video(tmp_path / f"v{suffix}", seconds=40, key_frame_every=key_frame_every)
    settings = WINDOWS.model_copy(update={"clip_seconds": 10.0})
    plain = read_clip(item_of(path), settings)

    clips = windows_of(path, settings)

    assert list(clips) == [f"{s:07.1f}" for s in (0, 10, 20, 30)]
    whole = list(clips.values())[:3]  # the last frame of a .ts has no length, so its last window is a frame shorter
    assert [numbers_in(clip) for clip in whole] == [[100 * k + 10 * i for i in range(10)] for k in range(3)]
    assert [len(clip.audio) for clip in whole] == [10 * AUDIO_RATE_HZ] * 3
    assert all(clip.flags == ClipFlag(0) for clip in clips.values())
    np.testing.assert_array_equal(clips["00000.0"].audio, plain.audio)
    assert clips["00000.0"].frames == plain.frames


def test_less_than_a_second_at_the_end_is_dropped_and_a_short_video_is_one_window(tmp_path):
    assert list(windows_of(long_video(tmp_path / "a.mkv", seconds=6.9))) == ["00000.0", "00003.0"]
    assert list(windows_of(long_video(tmp_path / "b.mkv", seconds=2.0))) == ["00000.0"]


def test_a_still_under_a_long_sound_is_in_all_windows(tmp_path):
    path = write_media(tmp_path / "v.mkv", frames=[numbered_frame(5)], sound=noise(8), rate_hz=AUDIO_RATE_HZ)

    clips = windows_of(path)

    assert list(clips) == ["00000.0", "00003.0", "00006.0"]
    assert all(numbers_in(clip) == [5] * 10 for clip in clips.values())


def test_a_window_that_cannot_be_a_clip_is_named_and_leaves_the_others_alone(tmp_path):
    # Given videos of which one window is silent, one does not decode, and one that is cut short
    sound = noise(9)
    sound[3 * AUDIO_RATE_HZ : 6 * AUDIO_RATE_HZ] = 0
    frames = [numbered_frame(k) for k in range(90)]
    folder = tmp_path / "videos"
    folder.mkdir()
    write_media(folder / "silent.mkv", frames=frames, sound=sound, rate_hz=AUDIO_RATE_HZ)
    write_media(folder / "spoilt.mp4", frames=frames, sound=tone(440, 9))
    spoil_packets(folder / "spoilt.mp4", "video", range(32, 58))
    cut_short(write_media(tmp_path / "whole.mkv", frames=frames, sound=tone(440, 9)), folder / "cut.mkv", 0.55)
    (folder / "text.mp4").write_text("no film\n" * 40)

    report = prepare(folder, tmp_path / "out", WINDOWS, workers=2, max_bad_share=0.9)

    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        refused = {row["source"]: row["code"] for row in csv.DictReader(file)}
    assert refused == {
        "cut.mkv@00003.0": "truncated",
        "silent.mkv@00003.0": "silent_audio",
        "spoilt.mp4@00003.0": "corrupt_video",
        "text.mp4": "not_media",
    }
    clips = clips_in(tmp_path / "out")
    assert list(clips) == sorted(clips)
    assert list(clips) == [
        *("cut@00000.0", "silent@00000.0", "silent@00006.0", "spoilt@00000.0", "spoilt@00006.0"),
    ]
    assert {clip["source"] for clip in clips.values()} == {"cut.mkv", "silent.mkv", "spoilt.mp4"}
    assert (report.inputs, report.clips, sum(report.rejected.values())) == (4, 5, 4)
    assert report.bad_share == pytest.approx(4 / 9)
    assert Manifest.read((tmp_path / "out" / "manifest.json").read_bytes()).windows


OFFICIAL = PrepareSettings(frame_size=72, frame_rule="official")


@pytest.mark.parametrize(
    ("fps", "frames", "claimed_s", "read"),
    [
        (30, 300, 10.0, [0, 29, 59, 89, 119, 149, 179, 209, 239, 269]),
        (30_000 / 1001, 299, 400 * 1001 / 30_000, [0, 28, 58, 88, 118, 148, 178, 208, 238, 268]),
        (12.5, 125, 10.0, [0, 11, 24, 36, 49, 61, 74, 86, 99, 111]),
    ],
)
def test_the_official_rule_picks_the_frames_of_its_table(tmp_path, fps, frames, claimed_s, read):
    # In Matroska the number of frames follows from the length, which the sound stretches
    pictures = [numbered_frame(k) for k in range(frames)]
    path = write_media(tmp_path / "v.mkv", frames=pictures, fps=fps, sound=tone(440, claimed_s, 16_000), rate_hz=16_000)

    assert numbers_in(read_clip(item_of(path), OFFICIAL)) == read


def test_windows_by_the_official_rule_follow_one_another_too(tmp_path):
    # Given a window that begins between two frames: the clip of the official rule begins with the second of them
    path = long_video(tmp_path / "v.mkv", seconds=9, fps=2.5)

    clip = list(windows_of(path, WINDOWS.model_copy(update={"frame_rule": "official"})).values())[1]

    assert clip.start_s == 3.0
    assert numbers_in(clip)[0] == 8
    assert len(clip.audio) == 3 * AUDIO_RATE_HZ


def test_flac_keeps_every_sample_and_the_manifest_says_so(tmp_path):
    path = long_video(tmp_path / "v.mkv", seconds=2.0)
    plain, flac = (PrepareSettings(frame_size=72, audio_codec=codec) for codec in ("pcm16", "flac"))

    prepare(tmp_path, tmp_path / "plain", plain, workers=1)
    prepare(path.parent, tmp_path / "flac", flac, workers=1)

    one, other = clips_in(tmp_path / "plain")["v"], clips_in(tmp_path / "flac")["v"]
    assert other["audio"][:4] == b"fLaC"
    np.testing.assert_array_equal(audio_of(one), audio_of(other))
    assert Manifest.read((tmp_path / "flac" / "manifest.json").read_bytes()).audio_codec == "flac"

"""Frames as many as asked for, whole or cut, at the right times; clips without sound or picture where allowed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, ClipFlag, ClipRecord, decode_frame
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.media import read_clip, split_video
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import PrepareSettings
from tests.data.media_files import (
    cut_short,
    number_of,
    numbered_frame,
    numbered_video,
    spoil_packets,
    tone,
    turn_clockwise,
    write_media,
)

SHORT, NO_SOUND, NO_PICTURE = ClipFlag.SHORT, ClipFlag.NO_SOUND, ClipFlag.NO_PICTURE


def item_of(path) -> VideoInput:
    return VideoInput(clip_id="id", source=path.name, path=str(path))


def clip_of(path, **settings) -> ClipRecord:
    return read_clip(item_of(path), PrepareSettings(**{"frame_size": 72, **settings}))


def rejection_of(path, **settings) -> RejectCode:
    with pytest.raises(ClipRejected) as caught:
        clip_of(path, **settings)
    return caught.value.code


def numbers_in(clip: ClipRecord) -> list[int]:
    return [number_of(decode_frame(jpeg)) for jpeg in clip.frames]


def numbered(seconds: float, fps: float = 10) -> list[np.ndarray]:
    return [numbered_frame(k) for k in range(round(seconds * fps))]


@pytest.mark.parametrize("frames", [1, 4, 25])
def test_n_frames_are_those_on_screen_at_n_equal_steps_of_the_picture(tmp_path, frames):
    clip = clip_of(numbered_video(tmp_path / "v.mkv", seconds=5.0, fps=20), frames=frames)

    assert numbers_in(clip) == [100 * i // frames for i in range(frames)]
    np.testing.assert_allclose(clip.frame_times, [5 * i / frames for i in range(frames)], atol=1e-3)


@pytest.mark.parametrize(("rate", "seconds", "count"), [(4, 3.0, 12), (2.5, 3.0, 8), (0.1, 3.0, 1), (8, 12.0, 80)])
def test_frames_at_a_rate_come_for_as_long_as_the_picture_lasts(tmp_path, rate, seconds, count):
    clip = clip_of(numbered_video(tmp_path / "v.mkv", seconds=seconds, fps=40), frames_per_second=rate)

    assert numbers_in(clip) == [round(40 * i / rate) for i in range(count)]
    np.testing.assert_allclose(clip.frame_times, [i / rate for i in range(count)], atol=1e-3)
    assert ClipFlag.REPEATED_FRAMES not in clip.flags


def test_a_rate_above_the_videos_own_repeats_its_frames_and_says_so(tmp_path):
    clip = clip_of(numbered_video(tmp_path / "v.mkv", seconds=2.0, fps=10), frames_per_second=20)

    assert numbers_in(clip) == [k // 2 for k in range(40)]
    assert clip.frames[0] == clip.frames[1] and ClipFlag.REPEATED_FRAMES in clip.flags


@pytest.mark.parametrize(
    ("picture", "aspect", "turned", "shape"),
    [
        ((72, 72), Fraction(1), False, (48, 48)),
        ((60, 180), Fraction(1), False, (48, 144)),
        ((180, 60), Fraction(1), False, (144, 48)),
        ((60, 180), Fraction(1), True, (144, 48)),  # a player shows it upright
        ((90, 120), Fraction(4, 3), False, (48, 85)),  # shown as 160 x 90
        ((120, 90), Fraction(1, 3), False, (192, 48)),  # shown as 30 x 120
        ((90, 120), Fraction(4, 3), True, (85, 48)),
    ],
)
def test_whole_frames_are_scaled_as_they_are_shown(tmp_path, picture, aspect, turned, shape):
    frames = [numbered_frame(k, *picture) for k in range(20)]
    path = write_media(tmp_path / "v.mp4", frames=frames, sound=tone(440, 2), pixel_aspect=aspect)
    if turned:
        turn_clockwise(path)

    clip = clip_of(path, short_side=48)

    assert [decode_frame(jpeg).shape for jpeg in clip.frames] == [(*shape, 3)] * 10
    if not turned:
        assert numbers_in(clip) == [2 * k for k in range(10)]  # nothing is cut off


def test_a_whole_frame_that_no_jpeg_could_hold_is_refused(tmp_path):
    frames = [np.zeros((2, 1400, 3), np.uint8)] * 20
    path = write_media(tmp_path / "v.mkv", frames=frames, sound=tone(440, 2))

    assert rejection_of(path, short_side=1024) == RejectCode.TOO_LARGE
    assert len(clip_of(path).frames) == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"frames": 0}, {"frames": -1}, {"frames": 10**6}, {"frames_per_second": 0.0}, {"frames_per_second": -3.0},
        {"frames_per_second": float("nan")}, {"frames_per_second": float("inf")}, {"frames_per_second": 1e6},
        {"short_side": 0}, {"short_side": 10**6}, {"require": "smell"},
        {"frame_rule": "official", "frames": 5}, {"frame_rule": "official", "frames_per_second": 5.0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        PrepareSettings(**settings)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three seconds of sound, of picture, of both, and files of which one part is not good enough."""
    folder = tmp_path_factory.mktemp("parts")
    frames, sound = numbered(3), tone(440, 3)
    made = {
        "both.mkv": {"frames": frames, "sound": sound},
        "no sound.mkv": {"frames": frames},
        "no picture.mkv": {"sound": sound},
        "silent.mkv": {"frames": frames, "sound": 0 * sound},
        "short sound.mkv": {"frames": frames, "sound": tone(440, 0.5)},
        "short picture.mkv": {"frames": frames[:5], "sound": sound},
        "apart.mkv": {"frames": frames, "sound": sound, "sound_start_s": 2.5},
    }
    for name, content in made.items():
        write_media(folder / name, **content)
    for kind in ("audio", "video"):
        spoil_packets(numbered_video(folder / f"bad {kind}.mp4", seconds=6.0), kind, range(5, 55))
    return folder


KEPT_WITHOUT_PICTURE = ["no picture.mkv", "short picture.mkv", "apart.mkv", "bad video.mp4"]
KEPT_WITHOUT_SOUND = ["no sound.mkv", "silent.mkv", "short sound.mkv", "apart.mkv", "bad audio.mp4"]


@pytest.mark.parametrize("name", KEPT_WITHOUT_PICTURE)
def test_where_audio_is_required_a_clip_is_kept_without_a_picture_that_is_missing_or_bad(files, name):
    clip = clip_of(files / name, require="audio")

    assert clip.flags & (NO_SOUND | NO_PICTURE) == NO_PICTURE
    assert (clip.frames, clip.frame_times) == ((), ())
    seconds = 6 if name == "bad video.mp4" else 3
    assert len(clip.audio) == pytest.approx(seconds * AUDIO_RATE_HZ, abs=1500) and clip.audio.any()  # AAC's frames
    assert clip.start_s == (2.5 if name == "apart.mkv" else 0.0)
    assert SHORT in clip.flags


@pytest.mark.parametrize("name", KEPT_WITHOUT_SOUND)
def test_where_video_is_required_a_clip_is_kept_without_a_sound_that_is_missing_or_bad(files, name):
    clip = clip_of(files / name, require="video")

    assert clip.flags & (NO_SOUND | NO_PICTURE | ClipFlag.SILENT) == NO_SOUND
    assert len(clip.audio) == 0 and clip.audio.dtype == np.int16
    step = 6 if name == "bad audio.mp4" else 3
    assert numbers_in(clip) == [step * k for k in range(10)]


@pytest.mark.parametrize("require", ["both", "audio", "video"])
def test_what_has_both_parts_is_the_same_clip_whatever_is_required(files, require):
    clip, plain = (clip_of(files / "both.mkv", **settings) for settings in ({"require": require}, {}))

    assert np.array_equal(clip.audio, plain.audio)
    assert replace(clip, audio=0, labels=0) == replace(plain, audio=0, labels=0)


def test_the_required_part_must_be_there_and_a_file_that_is_no_media_stays_out(files, tmp_path):
    cut = cut_short(numbered_video(tmp_path / "whole.mkv", seconds=9.0), tmp_path / "cut.mkv", 0.5)

    assert {
        name: rejection_of(files / name, require="audio") for name in KEPT_WITHOUT_SOUND if name != "apart.mkv"
    } == {
        "no sound.mkv": RejectCode.NO_AUDIO,
        "silent.mkv": RejectCode.SILENT_AUDIO,
        "short sound.mkv": RejectCode.TOO_SHORT,
        "bad audio.mp4": RejectCode.CORRUPT_AUDIO,
    }
    assert {
        name: rejection_of(files / name, require="video") for name in KEPT_WITHOUT_PICTURE if name != "apart.mkv"
    } == {
        "no picture.mkv": RejectCode.NO_VIDEO,
        "short picture.mkv": RejectCode.TOO_SHORT,
        "bad video.mp4": RejectCode.CORRUPT_VIDEO,
    }
    for require in ("audio", "video"):
        assert rejection_of(cut, require=require) == RejectCode.TRUNCATED
        assert rejection_of(tmp_path / "missing.mkv", require=require) == RejectCode.UNREADABLE


def test_a_silent_sound_is_kept_as_it_is_when_that_is_asked_for(files):
    clip = clip_of(files / "silent.mkv", require="video", keep_silent=True)

    assert clip.flags & (NO_SOUND | ClipFlag.SILENT) == ClipFlag.SILENT
    assert len(clip.audio) == 3 * AUDIO_RATE_HZ


def windows_of(path, **settings) -> dict[str, ClipRecord | RejectCode]:
    """What becomes of each window of a file."""
    chosen, found = PrepareSettings(frame_size=72, clip_seconds=2.0, **settings), {}
    for window in split_video(item_of(path), chosen):
        try:
            found[window.window] = read_clip(window, chosen)
        except ClipRejected as rejected:
            found[window.window] = rejected.code
    return found


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_windows_of_a_sound_without_a_picture_follow_one_another(tmp_path, suffix):
    wave = 0.5 * np.sin(2 * np.pi * np.cumsum(np.linspace(200, 900, 5 * AUDIO_RATE_HZ)) / AUDIO_RATE_HZ)
    path = write_media(tmp_path / f"v{suffix}", sound=wave, rate_hz=AUDIO_RATE_HZ, sound_codec="flac")

    found = windows_of(path, require="audio")

    assert list(found) == ["@00000.0", "@00002.0", "@00004.0"]
    assert [clip.start_s for clip in found.values()] == [0.0, 2.0, 4.0]
    assert [len(clip.audio) for clip in found.values()] == [2 * AUDIO_RATE_HZ] * 2 + [AUDIO_RATE_HZ]
    expected = np.round(wave * 32767)
    for k, clip in enumerate(found.values()):
        np.testing.assert_allclose(clip.audio, expected[2 * k * AUDIO_RATE_HZ :][: len(clip.audio)], atol=2)


@pytest.mark.parametrize("picture_s", [0.5, 1.5, 2.5])
def test_windows_last_as_long_as_the_sound_where_only_audio_is_required(tmp_path, picture_s):
    """Those whose picture has ended, or never lasted a second, are of the sound alone."""
    path = write_media(tmp_path / "v.mkv", frames=numbered(picture_s), sound=tone(440, 6), key_frame_every=5)

    found = windows_of(path, require="audio")

    assert list(found) == ["@00000.0", "@00002.0", "@00004.0"]
    seen = [clip for clip in found.values() if clip.frames]
    assert [len(clip.audio) / AUDIO_RATE_HZ for clip in found.values()] == pytest.approx([2, 2, 2], abs=0.06)
    assert len(seen) == (1 if picture_s > 1 else 0)


def test_a_window_after_the_sound_has_ended_has_none(tmp_path):
    path = write_media(tmp_path / "v.mkv", frames=numbered(6), sound=tone(440, 2.2), key_frame_every=10)
    settings = PrepareSettings(frame_size=72, clip_seconds=2, windows=True, require="audio")
    window = split_video(item_of(path), settings)[2]
    with pytest.raises(ClipRejected, match=r"0\.00 s of sound"):
        read_clip(window, settings)


def test_windows_after_the_sound_has_ended_are_kept_where_only_video_is_required(tmp_path):
    path = write_media(tmp_path / "v.mkv", frames=numbered(6), sound=tone(440, 2.2), key_frame_every=10)

    both, video = windows_of(path), windows_of(path, require="video", frames_per_second=5)

    assert [getattr(found, "flags", found) for found in both.values()] == [
        ClipFlag(0), RejectCode.NO_AV_OVERLAP, RejectCode.NO_AV_OVERLAP,
    ]  # fmt: skip
    assert [found.flags for found in video.values()] == [ClipFlag(0), NO_SOUND, NO_SOUND]
    assert [numbers_in(found) for found in video.values()] == [[20 * w + 2 * k for k in range(10)] for w in range(3)]

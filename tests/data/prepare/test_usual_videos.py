"""Videos of the usual encoders become what a plain reading of the whole file shows at the times of the clip."""

import av
import numpy as np
import pytest
from scipy.signal import resample_poly

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, ClipFlag, decode_frame
from cavmae_ds.data.prepare.settings import PrepareSettings
from tests.data.prepare.test_media import as_float, clip_of, numbers_in
from tests.data.usual_videos import ENCODINGS, melody

SETTINGS = PrepareSettings()  # 224 pixels, ten seconds
every_video = pytest.mark.parametrize("name", ENCODINGS)


def frame_times(path):
    """Seconds [n] of every frame that a player shows, from the first on; frame k shows number k."""
    with av.open(str(path)) as container:
        times_s = np.sort([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
    return times_s, times_s - times_s[0]


def first_channel(path, start_s):
    """float [n] at 16 kHz: what a player makes heard from start_s on, at most ten seconds of it."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        rate_hz, parts, first_s = track.rate, [], None
        for frame in container.decode(track):
            assert frame.format.name == "fltp"
            first_s = float(frame.pts * frame.time_base) if first_s is None else first_s
            parts.append(frame.to_ndarray()[0])
    sound, late = np.concatenate(parts), round((first_s - start_s) * rate_hz)
    sound = np.concatenate([np.zeros(max(late, 0)), sound[max(-late, 0) :]])
    return resample_poly(sound, AUDIO_RATE_HZ, rate_hz)[: 10 * AUDIO_RATE_HZ]


@every_video
def test_frames_are_those_on_screen_at_tenths_of_the_picture(usual_videos, name):
    _, times_s = frame_times(usual_videos / name)
    length_s = min(times_s[-1] + 1 / float(ENCODINGS[name].fps), 10.0)
    on_screen = [int(np.flatnonzero(times_s <= i * length_s / 10 + 1e-4)[-1]) for i in range(10)]

    clip = clip_of(usual_videos / name, SETTINGS)

    assert len(times_s) == ENCODINGS[name].frames
    assert numbers_in(clip) == on_screen
    np.testing.assert_allclose(clip.frame_times, times_s[on_screen], atol=1e-5)
    assert {decode_frame(jpeg).shape for jpeg in clip.frames} == {(224, 224, 3)}


@every_video
def test_sound_is_the_first_channel_from_the_first_frame_on(usual_videos, name):
    start_s = frame_times(usual_videos / name)[0][0]
    wanted = first_channel(usual_videos / name, start_s)

    sound = as_float(clip_of(usual_videos / name, SETTINGS))

    assert abs(len(sound) - len(wanted)) <= 1
    inner = slice(100, min(len(sound), len(wanted)) - 100)  # the resampling filter rings at both ends
    np.testing.assert_allclose(sound[inner], wanted[inner], atol=2e-3)


@every_video
def test_sound_is_the_melody_that_was_encoded_to_the_sample(usual_videos, name):
    sound = as_float(clip_of(usual_videos / name, SETTINGS))
    wanted = melody(ENCODINGS[name].sound_seconds, AUDIO_RATE_HZ)

    middle = slice(8_000, 40_000)
    likeness = {
        shift: np.corrcoef(sound[middle], wanted[middle.start + shift : middle.stop + shift])[0, 1]
        for shift in range(-50, 51)
    }

    assert max(likeness, key=likeness.get) == 0
    assert likeness[0] > 0.999


def test_only_what_is_unusual_about_a_video_is_flagged(usual_videos):
    assert {name: clip_of(usual_videos / name, SETTINGS).flags for name in ENCODINGS} == {
        "broadcast.ts": ClipFlag.SHORT,
        "camera.mp4": ClipFlag(0),
        "phone.mov": ClipFlag.SHORT | ClipFlag.ROTATED,
        "still.mp4": ClipFlag.SHORT | ClipFlag.REPEATED_FRAMES,
        "stream.webm": ClipFlag.SHORT,
        "web.mp4": ClipFlag(0),
    }


@pytest.mark.parametrize(
    ("name", "numbers", "frame_s"),
    [
        ("web.mp4", [0, 11, 24, 36, 49, 61, 74, 86, 99, 111], 0.08),
        ("camera.mp4", [0, 28, 58, 88, 118, 148, 178, 208, 238, 268], 1001 / 30_000),
    ],
)
def test_the_official_rule_picks_the_frames_of_its_table(usual_videos, name, numbers, frame_s):
    clip = clip_of(usual_videos / name, PrepareSettings(frame_rule="official"))

    assert numbers_in(clip) == numbers
    np.testing.assert_allclose(clip.frame_times, [k * frame_s for k in numbers], atol=1e-5)

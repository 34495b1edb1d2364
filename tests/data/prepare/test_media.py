"""One video in, one clip out: the right frames, the right sound, and a reason for each refusal."""

import numpy as np
import pytest

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, ClipFlag, decode_frame
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.media import read_clip
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

SMALL = PrepareSettings(frame_size=72)


def clip_of(path, settings=SMALL):
    return read_clip(VideoInput(clip_id="id", source=path.name, path=str(path)), settings)


def numbers_in(clip):
    return [number_of(decode_frame(jpeg)) for jpeg in clip.frames]


def as_float(clip):
    return clip.audio.astype(np.float64) / 32768


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frame_i_is_the_one_on_screen_at_i_tenths_of_the_picture(tmp_path, suffix):
    clip = clip_of(numbered_video(tmp_path / f"v{suffix}", seconds=4.0, fps=15))

    # 60 frames: the wanted times are 0, 0.4, 0.8 ... s, which is frame 0, 6, 12 ...
    assert numbers_in(clip) == [6 * i for i in range(10)]
    np.testing.assert_allclose(clip.frame_times, [0.4 * i for i in range(10)], atol=1e-3)


def test_only_the_first_ten_seconds_of_a_longer_video_are_used(tmp_path):
    clip = clip_of(numbered_video(tmp_path / "v.mkv", seconds=14.0, fps=10))

    assert numbers_in(clip) == [10 * i for i in range(10)]
    assert len(clip.audio) == 10 * AUDIO_RATE_HZ
    assert clip.flags == ClipFlag(0)


def test_with_uneven_frame_times_the_frame_on_screen_is_chosen_not_the_nth(tmp_path):
    times_s = [0.0, 0.1, 0.2, 0.3, 2.05, 2.1, 3.9]
    frames = [numbered_frame(k) for k in range(len(times_s))]
    path = write_media(tmp_path / "v.mkv", frames=frames, frame_times_s=times_s, sound=tone(440, 4))

    clip = clip_of(path)

    wanted_s = [i * 0.4 for i in range(10)]  # the last frame begins at 3.9 s and lasts a tenth
    assert numbers_in(clip) == [max(k for k, t in enumerate(times_s) if t <= w) for w in wanted_s]
    assert ClipFlag.VARIABLE_RATE in clip.flags
    assert ClipFlag.REPEATED_FRAMES in clip.flags


def test_a_still_picture_under_a_sound_stays_on_screen(tmp_path):
    path = write_media(tmp_path / "v.mp4", frames=[numbered_frame(5)], sound=tone(440, 3))

    clip = clip_of(path)

    assert numbers_in(clip) == [5] * 10
    assert clip.frame_times == (0.0,) * 10
    assert clip.flags == ClipFlag.SHORT | ClipFlag.REPEATED_FRAMES


def test_the_display_rotation_is_applied(tmp_path):
    # Given a picture whose left half is white, and a player's order to turn it right by 90 degrees
    picture = np.zeros((72, 72, 3), np.uint8)
    picture[:, :36] = 255
    path = write_media(tmp_path / "v.mp4", frames=[picture] * 20, sound=tone(440, 2))
    turn_clockwise(path)

    clip = clip_of(path)

    # Then its upper half is white
    frame = decode_frame(clip.frames[0])
    assert frame[:30].mean() > 240
    assert frame[42:].mean() < 15
    assert ClipFlag.ROTATED in clip.flags


def test_the_short_side_is_scaled_and_the_centre_is_kept(tmp_path):
    # Given a wide picture: red, then a white square in the middle, then blue
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, :100, 0], picture[:, 100:200], picture[:, 200:, 2] = 255, 255, 255
    path = write_media(tmp_path / "v.mkv", frames=[picture] * 20, sound=tone(440, 2))

    frame = decode_frame(clip_of(path, PrepareSettings(frame_size=64)).frames[0])

    assert frame.shape == (64, 64, 3)
    assert frame[:, 4:-4].min() > 225  # the square, and nothing else


def test_the_first_channel_is_kept_and_the_others_are_not_mixed_in(tmp_path):
    stereo = np.stack([tone(440, 3), tone(1000, 3)])
    path = write_media(tmp_path / "v.mkv", frames=[numbered_frame(k) for k in range(30)], sound=stereo)
    wanted, other = tone(440, 3, AUDIO_RATE_HZ), tone(1000, 3, AUDIO_RATE_HZ)

    first = as_float(clip_of(path))
    mean = as_float(clip_of(path, PrepareSettings(frame_size=72, channel="mean")))

    inner = slice(100, -100)  # the resampling filter rings at both ends
    np.testing.assert_allclose(first[inner], wanted[inner], atol=2e-3)
    np.testing.assert_allclose(mean[inner], (wanted + other)[inner] / 2, atol=2e-3)


def test_sound_that_is_16_khz_mono_already_is_kept_bit_by_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-30_000, 30_000, 3 * AUDIO_RATE_HZ)
    frames = [numbered_frame(k) for k in range(30)]
    path = write_media(tmp_path / "v.mkv", frames=frames, sound=samples / 32767, rate_hz=AUDIO_RATE_HZ)

    np.testing.assert_array_equal(clip_of(path).audio, samples)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_any_sampling_rate_becomes_16_khz_without_a_shift(tmp_path, rate_hz):
    frames = [numbered_frame(k) for k in range(20)]
    path = write_media(tmp_path / "v.mkv", frames=frames, sound=tone(500, 2, rate_hz), rate_hz=rate_hz)

    sound = as_float(clip_of(path))

    wanted = tone(500, 2, AUDIO_RATE_HZ)
    assert len(sound) == len(wanted)
    np.testing.assert_allclose(sound[200:-200], wanted[200:-200], atol=3e-3)


def test_sound_that_begins_late_is_put_where_its_timestamps_say(tmp_path):
    frames = [numbered_frame(k) for k in range(40)]
    path = write_media(tmp_path / "v.mkv", frames=frames, sound=tone(440, 2.5), sound_start_s=1.5)

    clip = clip_of(path)

    sound = as_float(clip)
    assert len(sound) == 4 * AUDIO_RATE_HZ
    assert not sound[: int(1.49 * AUDIO_RATE_HZ)].any()
    np.testing.assert_allclose(sound[24_100:-100], tone(440, 2.5, AUDIO_RATE_HZ)[100:-100], atol=2e-3)
    assert ClipFlag.AV_OFFSET_FILLED in clip.flags


def test_sound_before_the_first_picture_is_dropped(tmp_path):
    frames = [numbered_frame(k) for k in range(20)]
    times_s = [1.0 + k / 10 for k in range(20)]
    path = write_media(tmp_path / "v.mkv", frames=frames, frame_times_s=times_s, sound=tone(440, 3))

    clip = clip_of(path)

    np.testing.assert_allclose(as_float(clip)[100:-100], tone(440, 3, AUDIO_RATE_HZ)[16_100:-100], atol=2e-3)
    assert clip.start_s == pytest.approx(1.0)
    assert numbers_in(clip) == [2 * i for i in range(10)]


@pytest.mark.parametrize(
    "name", ['it\'s "quoted".mp4', "-dash first.mp4", "a:b.mp4", "100%d %20.mp4", "http:x.mp4", "ü 漢.mp4"]
)
def test_a_name_with_odd_characters_is_opened_as_it_stands(tmp_path, name):
    clip = clip_of(numbered_video(tmp_path / name, seconds=2.0))

    assert numbers_in(clip) == [2 * i for i in range(10)]


def rejection_of(path, settings=SMALL):
    with pytest.raises(ClipRejected) as caught:
        clip_of(path, settings)
    return caught.value.code


def test_each_way_to_be_no_clip_has_its_own_code(tmp_path):
    frames, sound = [numbered_frame(k) for k in range(30)], tone(440, 3)
    whole = numbered_video(tmp_path / "whole.mp4", seconds=9.0)
    index_last = whole.read_bytes()
    assert index_last.index(b"mdat") < index_last.index(b"moov")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("This is no film.\n" * 40)
    (tmp_path / "subtitles.mp4").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n")

    codes = {
        "missing": rejection_of(tmp_path / "missing.mp4"),
        "empty": rejection_of(tmp_path / "empty.mp4"),
        "text": rejection_of(tmp_path / "text.mp4"),
        "subtitles": rejection_of(tmp_path / "subtitles.mp4"),
        "cut mp4": rejection_of(cut_short(whole, tmp_path / "cut.mp4", 0.5)),
        "cut mkv": rejection_of(
            cut_short(numbered_video(tmp_path / "whole.mkv", seconds=9.0), tmp_path / "cut.mkv", 0.5)
        ),
        "dumb": rejection_of(write_media(tmp_path / "dumb.mp4", frames=frames)),
        "blind": rejection_of(write_media(tmp_path / "blind.mp4", sound=sound)),
        "blink": rejection_of(write_media(tmp_path / "a.mkv", frames=frames[:5], sound=sound)),
        "peep": rejection_of(write_media(tmp_path / "b.mkv", frames=frames, sound=tone(440, 0.5))),
        "silent": rejection_of(write_media(tmp_path / "c.mkv", frames=frames, sound=0 * sound)),
        "apart": rejection_of(write_media(tmp_path / "d.mkv", frames=frames, sound=sound, sound_start_s=2.5)),
        "large": rejection_of(whole, PrepareSettings(frame_size=72, max_frame_pixels=5000)),
    }

    assert codes == {
        "missing": RejectCode.UNREADABLE,
        "empty": RejectCode.EMPTY_FILE,
        "text": RejectCode.NOT_MEDIA,
        "subtitles": RejectCode.NOT_MEDIA,
        "cut mp4": RejectCode.TRUNCATED,
        "cut mkv": RejectCode.TRUNCATED,
        "dumb": RejectCode.NO_AUDIO,
        "blind": RejectCode.NO_VIDEO,
        "blink": RejectCode.TOO_SHORT,
        "peep": RejectCode.TOO_SHORT,
        "silent": RejectCode.SILENT_AUDIO,
        "apart": RejectCode.NO_AV_OVERLAP,
        "large": RejectCode.TOO_LARGE,
    }


def test_a_silent_clip_can_be_kept_and_is_flagged(tmp_path):
    frames = [numbered_frame(k) for k in range(30)]
    path = write_media(tmp_path / "v.mkv", frames=frames, sound=0 * tone(440, 3))

    clip = clip_of(path, PrepareSettings(frame_size=72, keep_silent=True))

    assert ClipFlag.SILENT in clip.flags
    assert len(clip.audio) == 3 * AUDIO_RATE_HZ


def test_a_frame_that_does_not_decode_gives_way_to_the_one_before_it(tmp_path):
    path = numbered_video(tmp_path / "v.mp4", seconds=6.0)
    spoil_packets(path, "video", [12, 13, 30])

    clip = clip_of(path)

    assert numbers_in(clip) == [0, 6, 11, 18, 24, 29, 36, 42, 48, 54]
    assert ClipFlag.SOME_CORRUPT_FRAMES in clip.flags


@pytest.mark.parametrize(("kind", "code"), [("video", RejectCode.CORRUPT_VIDEO), ("audio", RejectCode.CORRUPT_AUDIO)])
def test_a_track_of_which_more_than_a_tenth_does_not_decode_is_refused(tmp_path, kind, code):
    path = numbered_video(tmp_path / "v.mp4", seconds=6.0)
    spoil_packets(path, kind, range(5, 55))

    assert rejection_of(path) == code

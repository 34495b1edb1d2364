"""Videos that play though something about them is unusual: the clip is what a player shows, or the reason is right."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, ClipFlag, decode_frame
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import PrepareSettings
from tests.data.media_files import (
    cut_off_the_beginning,
    cut_short,
    joined,
    numbered_frame,
    numbered_video,
    spoil_packets,
    tone,
    write_media,
)
from tests.data.prepare.test_media import SMALL, as_float, clip_of, numbers_in, rejection_of
from tests.data.prepare.test_prepare_windows import windows_of

OFFICIAL = PrepareSettings(frame_size=72, frame_rule="official")
RED, GREEN, BLUE, WHITE = (220, 20, 20), (20, 220, 20), (20, 20, 220), (220, 220, 220)


def test_a_title_that_is_not_utf_8_is_not_looked_at(tmp_path):
    frames = [numbered_frame(k) for k in range(20)]
    source = write_media(tmp_path / "v.mkv", frames=frames, sound=tone(440, 2), codec="mpeg4")
    plain, titled = joined(tmp_path / "plain.avi", source), joined(tmp_path / "v.avi", source, title="café")
    assert b"caf\xe9" in titled.read_bytes()

    assert clip_of(titled).frames == clip_of(plain).frames


def test_a_recording_that_begins_between_key_frames_is_a_clip_from_its_first_key_frame_on(tmp_path):
    # Given a recording of frames 0 to 79, of which the first third is missing, and key frames 0, 40, 80
    frames = [numbered_frame(k) for k in range(80)]
    whole = write_media(tmp_path / "v.ts", frames=frames, sound=tone(440, 8), key_frame_every=40)
    path = cut_off_the_beginning(whole, tmp_path / "cut.ts", 0.3)

    clip, (window,) = clip_of(path), windows_of(path, SMALL).values()

    # Then no frame stands for a time before its own
    wanted_s = 0.1 * np.array(numbers_in(clip)) - 4.0
    np.testing.assert_allclose(clip.frame_times, wanted_s, atol=2e-3)
    assert numbers_in(clip)[0] == 40
    assert clip.flags == ClipFlag.SHORT
    assert numbers_in(window) == numbers_in(clip)


def test_without_any_key_frame_the_picture_does_not_decode(tmp_path):
    frames = [numbered_frame(k) for k in range(40)]
    whole = write_media(tmp_path / "v.ts", frames=frames, sound=tone(440, 4), key_frame_every=100)

    assert rejection_of(cut_off_the_beginning(whole, tmp_path / "cut.ts", 0.2)) == RejectCode.CORRUPT_VIDEO


def test_if_the_first_frames_do_not_decode_the_clip_begins_with_the_first_that_does(tmp_path):
    frames = [numbered_frame(k) for k in range(60)]
    path = write_media(tmp_path / "v.mov", frames=frames, sound=tone(440, 6), codec="mjpeg", pixel_format="yuvj420p")
    spoil_packets(path, "video", [0, 1])

    clip = clip_of(path)

    assert clip.start_s == pytest.approx(0.2)
    assert numbers_in(clip)[0] == 2
    np.testing.assert_allclose(clip.frame_times, [0.1 * (k - 2) for k in numbers_in(clip)], atol=1e-3)
    np.testing.assert_allclose(as_float(clip)[100:3000], tone(440, 6, AUDIO_RATE_HZ)[3300:6200], atol=0.02)
    assert ClipFlag.SOME_CORRUPT_FRAMES in clip.flags


def test_packets_of_which_the_decoder_makes_nothing_count_as_not_decoded(tmp_path):
    a_little, a_lot = (numbered_video(tmp_path / f"{name}.mp4", seconds=6.0) for name in "ab")
    spoil_packets(a_little, "video", range(20, 24), filler=True)
    spoil_packets(a_lot, "video", range(20, 30), filler=True)

    assert ClipFlag.SOME_CORRUPT_FRAMES in clip_of(a_little).flags
    assert rejection_of(a_lot) == RejectCode.CORRUPT_VIDEO


def test_frames_that_come_out_of_order_of_their_times_are_not_missing(tmp_path):
    frames = [numbered_frame(k) for k in range(40)]
    path = write_media(tmp_path / "v.avi", frames=frames, sound=tone(440, 4), key_frame_every=10)

    assert ClipFlag.SOME_CORRUPT_FRAMES not in clip_of(path).flags


def test_subtitles_and_tracks_that_are_not_read_may_be_longer_than_the_clip(tmp_path):
    # Given 25 s of picture and sound, of which a subtitle is shown from the first second to the fortieth
    frames = [numbered_frame(k) for k in range(50)]
    video = write_media(tmp_path / "v.mkv", frames=frames, fps=2, sound=tone(440, 25, 16_000), rate_hz=16_000)
    (tmp_path / "s.srt").write_text("1\n00:00:01,000 --> 00:00:40,000\nhello\n\n")
    longer = write_media(tmp_path / "sound.mkv", sound=tone(1000, 40, 16_000), rate_hz=16_000)
    five = PrepareSettings(frame_size=72, clip_seconds=5, windows=True)

    for name, other in {"subtitles": tmp_path / "s.srt", "commentary": longer}.items():
        path = joined(tmp_path / f"{name}.mkv", video, other)
        assert numbers_in(clip_of(path)) == [2 * i for i in range(10)]
        assert [numbers_in(clip) for clip in windows_of(path, five).values()] == [
            [10 * k + i for i in range(10)] for k in range(5)
        ]
    assert rejection_of(cut_short(path, tmp_path / "cut.mkv", 0.2)) == RejectCode.TRUNCATED


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7])
def test_a_cut_file_has_the_same_reason_with_and_without_windows(tmp_path, suffix, share):
    # Given a file that ends after its header, or after a share of its packets
    options = {"movflags": "faststart"} if suffix == ".mp4" else None
    frames = [numbered_frame(k) for k in range(80)]
    whole = write_media(tmp_path / f"v{suffix}", frames=frames, sound=tone(440, 8), container_options=options)
    header = whole.read_bytes().index({".mkv": b"\x1f\x43\xb6\x75", ".mp4": b"mdat"}[suffix]) + 4
    content = whole.read_bytes()
    whole.write_bytes(content[: round(header + share * (len(content) - header))])

    assert rejection_of(whole) == RejectCode.TRUNCATED
    try:
        assert windows_of(whole, SMALL) == {"00000.0": "truncated"}
    except ClipRejected as rejected:  # not one window
        assert rejected.code == RejectCode.TRUNCATED


MATRICES = [
    *([x, 0, 0, y] for x, y in product((1, -1), repeat=2)),
    *([0, x, y, 0] for x, y in product((1, -1), repeat=2)),
]


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_pictures_are_turned_and_mirrored_as_a_player_does_it(tmp_path, matrix):
    # Given four quarters of a picture, and a display matrix that shows the point (x, y) at (a x + c y, b x + d y)
    a, b, c, d = matrix
    quarters = {(-1, -1): RED, (1, -1): GREEN, (-1, 1): BLUE, (1, 1): WHITE}
    shown = {(a * x + c * y, b * x + d * y): colour for (x, y), colour in quarters.items()}
    one = 2**16
    path = write_media(
        tmp_path / "v.mp4",
        frames=[_picture_of(quarters)] * 20,
        sound=tone(440, 2),
        display_matrix=[a * one, b * one, 0, c * one, d * one, 0, 0, 0, 2**30],
    )

    clip, official = clip_of(path), clip_of(path, OFFICIAL)

    assert all(_quarters_in(clip)[place] == pytest.approx(colour, abs=30) for place, colour in shown.items())
    assert (ClipFlag.ROTATED in clip.flags) == (matrix != [1, 0, 0, 1])
    if a * d - b * c > 0:  # no mirror: OpenCV turns it too
        assert all(_quarters_in(official)[place] == pytest.approx(colour, abs=30) for place, colour in shown.items())


def _picture_of(quarters):
    picture = np.zeros((72, 72, 3), np.uint8)
    for (x, y), colour in quarters.items():
        picture[_half(y), _half(x)] = colour
    return picture


def _quarters_in(clip):
    frame = decode_frame(clip.frames[0])
    corners = product((-1, 1), repeat=2)
    return {(x, y): tuple(frame[_half(y), _half(x)][9:27, 9:27].mean((0, 1))) for x, y in corners}


def _half(sign):
    return slice(0, 36) if sign < 0 else slice(36, 72)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_that_are_not_square_are_shown_by_a_player_and_ignored_by_the_official_rule(tmp_path, suffix):
    # Given white in the middle half of a blue picture, and pixels twice as wide as high: the middle is a square
    picture = np.full((72, 72, 3), BLUE, np.uint8)
    picture[:, 18:54] = WHITE
    wide, high = (tmp_path / f"{name}{suffix}" for name in ("wide", "high"))
    write_media(wide, frames=[picture] * 20, sound=tone(440, 2), pixel_aspect=Fraction(2))
    write_media(high, frames=[picture.swapaxes(0, 1)] * 20, sound=tone(440, 2), pixel_aspect=Fraction(1, 2))

    for path in (wide, high):
        shown, official = (decode_frame(clip_of(path, rule).frames[0]) for rule in (SMALL, OFFICIAL))
        assert shown[4:-4, 4:-4].min() > 190
        assert (official.mean(-1) > 150).mean() == pytest.approx(0.5, abs=0.05)


def test_wide_pixels_of_a_picture_that_is_turned_are_high_ones(tmp_path):
    picture = np.full((72, 72, 3), BLUE, np.uint8)
    picture[:, 18:54] = WHITE
    right = [0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30]
    path = write_media(
        tmp_path / "v.mkv", frames=[picture] * 20, sound=tone(440, 2), pixel_aspect=Fraction(2), display_matrix=right
    )

    assert decode_frame(clip_of(path).frames[0])[4:-4, 4:-4].min() > 190


def test_an_encrypted_file_is_named_so(tmp_path):
    keys = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb", "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}
    common = {"encryption_scheme": "cenc-aes-ctr", **keys}
    content = {"frames": [numbered_frame(k) for k in range(20)], "sound": tone(440, 2)}
    cenc = write_media(tmp_path / "cenc.mp4", **content, container_options=common)
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    parts = write_media(tmp_path / "parts.mp4", **content, container_options=common | fragments)
    fairplay = write_media(tmp_path / "fairplay.mp4", **content)
    content = fairplay.read_bytes()
    for plain, encrypted in ((b"avc1", b"drmi"), (b"mp4a", b"drms")):
        content = content.replace(plain + bytes(4), encrypted + bytes(4))
    fairplay.write_bytes(content)

    for path in (cenc, parts, fairplay):
        assert rejection_of(path) == RejectCode.ENCRYPTED, path
        with pytest.raises(ClipRejected, match="encrypted"):
            windows_of(path)


def test_the_sound_track_can_be_chosen(tmp_path):
    other = write_media(tmp_path / "other.mkv", sound=tone(1000, 2))
    path = joined(tmp_path / "v.mkv", numbered_video(tmp_path / "v.mov", seconds=2.0), other)
    second, third = (SMALL.model_copy(update={"audio_track": number}) for number in (2, 3))

    for settings, hertz in ((SMALL, 440), (second, 1000)):
        heard = as_float(clip_of(path, settings))
        np.testing.assert_allclose(heard[100:-100], tone(hertz, 2, AUDIO_RATE_HZ)[100:-100], atol=2e-3)
    with pytest.raises(ClipRejected, match="no_audio: sound track 3 is wanted; tracks: video, audio, audio"):
        clip_of(path, third)

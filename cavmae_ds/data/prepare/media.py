"""One video file in, clip records out: what is accepted, what is refused, and the clip's clock.

A clip begins with the first key frame of the picture (t0), or a number of clip lengths after it, and lasts
`clip_seconds` or less. If that does not decode, it begins with the first frame that does.
Packets are read first, because their timestamps tell how long the picture really lasts before anything is
decoded; then each track is decoded once. Durations and frame counts in file headers are only used to notice
missing data, and where the official frame rule asks for them. Rules: spec data-path.md section 7.

With `require` "audio" or "video" a file that is refused for its other part is read again without that part. Without a
picture the clip begins with the sound.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, MIN_COMMON_SECONDS, ClipFlag, ClipRecord, Require
from cavmae_ds.data.prepare.audio import read_sound
from cavmae_ds.data.prepare.frames import Turn, encode_frame, official_numbers, pick_frames
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import MIN_SHARE_OF_DECLARED, SHORT_BELOW_SHARE, PrepareSettings
from cavmae_ds.data.prepare.tracks import (
    TIME_TOLERANCE_S,
    Track,
    Tracks,
    find_tracks,
    opened,
    read_all,
    read_packets,
    read_packets_from,
)
from cavmae_ds.errors import distinct

MAX_BAD_SHARE = 0.1
MAX_FRAME_BYTES = 2**31
"""Of one clip; a shard counts its bytes in 32 bits."""
OF_THE_OTHER = {
    "both": (),
    "audio": (RejectCode.NO_VIDEO, RejectCode.CORRUPT_VIDEO, RejectCode.TOO_LARGE),
    "video": (RejectCode.NO_AUDIO, RejectCode.CORRUPT_AUDIO, RejectCode.SILENT_AUDIO),
}
"""Reasons that lie in the part that is not required."""
OF_EITHER = (RejectCode.TOO_SHORT, RejectCode.NO_AV_OVERLAP)

Made = TypeVar("Made")


class Picture(NamedTuple):
    """A frame of a clip."""

    jpeg: bytes
    turned: bool  # or mirrored, to be shown upright


def split_video(item: VideoInput, settings: PrepareSettings) -> list[VideoInput]:
    """The windows of a video: one after another from the first picture on, each `clip_seconds` long.

    A remainder of MIN_COMMON_SECONDS or more is a window of its own. A file that ends before it should has one
    window more, to be refused as truncated. Reads the whole file and decodes nothing. Raises ClipRejected.
    """
    return _with_what_is_required(_split, item, settings)


def read_clip(item: VideoInput, settings: PrepareSettings) -> ClipRecord:
    """Decodes `settings.clip_seconds` of a video into a record: its beginning, or the window that the item means.

    D = min(length of the picture, clip_seconds). Of F frames, frame i is the one on screen at t0 + i * D / F; at R
    frames a second, at t0 + i / R for as long as the picture lasts; or they follow the official rule (see
    official_numbers). A single picture under a longer sound counts as a still that stays on screen.
    Raises ClipRejected.
    """
    return _with_what_is_required(_read, item, settings)


def _with_what_is_required(
    make: Callable[[VideoInput, PrepareSettings, Require], Made], item: VideoInput, settings: PrepareSettings
) -> Made:
    """Made of picture and sound, or of the required part alone where the other one is missing or not good enough."""
    try:
        return make(item, settings, "both")
    except ClipRejected as rejected:
        if settings.require == "both" or rejected.code not in (*OF_THE_OTHER[settings.require], *OF_EITHER):
            raise
    return make(item, settings, settings.require)


def _split(item: VideoInput, settings: PrepareSettings, parts: Require) -> list[VideoInput]:
    with opened(item.path) as container:
        tracks = find_tracks(container, settings.max_frame_pixels, settings.audio_track, parts)
        read_all(container, tracks)
        start_s = tracks.read[0].start_s
        if not tracks.read[0].presented:
            _refuse_missing(container, tracks, tracks.read[-1].start_s, settings.clip_seconds)
        truncated = _shortfall(container, tracks, start_s, np.inf) is not None
    # A window whose picture has ended is one of its sound alone, where that is enough.
    end_s = max(track.end_s for track in tracks.read) if settings.require == "audio" else _end_s(tracks)
    length_s = end_s - start_s
    windows = int((length_s + TIME_TOLERANCE_S) / settings.clip_seconds)
    windows += truncated or length_s - windows * settings.clip_seconds >= MIN_COMMON_SECONDS
    offsets_s = [k * settings.clip_seconds for k in range(max(windows, 1))]
    return [item.window_at(offset_s, start_s + offset_s if offset_s else None) for offset_s in offsets_s]


def _read(item: VideoInput, settings: PrepareSettings, parts: Require, *, jump: bool = True) -> ClipRecord:
    seconds, official = settings.clip_seconds, settings.frame_rule == "official"
    frames: list[tuple[float, Picture]] = []
    bad_video, sound = 0.0, None
    with opened(item.path) as container:
        tracks = find_tracks(container, settings.max_frame_pixels, settings.audio_track, parts)
        if item.start_s is None:
            read_packets(container, tracks, seconds)
        else:
            landed = read_packets_from(container, tracks, item.start_s, seconds, jump=jump)
            # It landed too late, or a subtitle that lasts to the end was jumped over.
            if jump and not (landed and _shortfall(container, tracks, item.start_s, seconds) is None):
                return _read(item, settings, parts, jump=False)
        start_s, length_s = _clip_span(container, tracks, item.start_s, seconds)
        source_start_s = (container.start_time or 0) / av.time_base
        if tracks.video:
            frames, bad_video = _pick(container, tracks.video, start_s, length_s, settings)
            _refuse_bad("picture", RejectCode.CORRUPT_VIDEO, len(frames), bad_video)
            late_s = frames[0][0] - start_s
            if late_s > TIME_TOLERANCE_S and not official:  # which counts frames: else none is shown before its time
                seconds -= late_s
                start_s, length_s = _clip_span(container, tracks, frames[0][0], seconds)
                frames, _ = _pick(container, tracks.video, start_s, length_s, settings)
        if tracks.audio:
            sound = read_sound(tracks.audio.stream, tracks.audio.packets, start_s, seconds, settings.channel)
            _refuse_bad("sound", RejectCode.CORRUPT_AUDIO, len(sound.samples), sound.bad_share)
    silent = sound is not None and not sound.samples.any()
    if sound is not None and silent and not settings.keep_silent:
        raise ClipRejected(RejectCode.SILENT_AUDIO, f"all {len(sound.samples)} samples are zero")

    if (size := sum(len(picture.jpeg) for _, picture in frames)) > MAX_FRAME_BYTES:
        raise ClipRejected(RejectCode.TOO_LARGE, f"{size / 1e9:.1f} GB of frames, {MAX_FRAME_BYTES / 1e9:.1f} fit")
    times_s = tuple(round(time_s - start_s, 6) for time_s, _ in frames)
    covered_s = min(length_s, len(sound.samples) / AUDIO_RATE_HZ) if sound else length_s
    unusual = {
        ClipFlag.SHORT: covered_s < SHORT_BELOW_SHARE * settings.clip_seconds,
        ClipFlag.SILENT: silent,
        ClipFlag.ROTATED: any(picture.turned for _, picture in frames),
        ClipFlag.AV_OFFSET_FILLED: sound is not None and sound.filled,
        ClipFlag.REPEATED_FRAMES: len(set(times_s)) < len(times_s),
        ClipFlag.SOME_CORRUPT_FRAMES: bad_video > 0,
        ClipFlag.VARIABLE_RATE: tracks.video is not None
        and _rate_varies(tracks.video, start_s, start_s + settings.clip_seconds),
        ClipFlag.NO_SOUND: sound is None,
        ClipFlag.NO_PICTURE: not frames,
    }
    return ClipRecord(
        clip_id=item.clip_id,
        source=item.source,
        start_s=round(start_s - source_start_s, 6),
        audio=sound.samples if sound else np.zeros(0, np.int16),
        frames=tuple(picture.jpeg for _, picture in frames),
        frame_times=times_s,
        labels=np.array(item.labels, np.int32),
        flags=ClipFlag.those(unusual),
    )


def _pick(
    container: InputContainer, video: Track, start_s: float, length_s: float, settings: PrepareSettings
) -> tuple[list[tuple[float, Picture]], float]:
    """See pick_frames."""
    official = settings.frame_rule == "official"
    aspect: Fraction | None = None if official else video.stream.sample_aspect_ratio  # type: ignore[attr-defined]
    size, whole = settings.short_side or settings.frame_size, settings.short_side is not None

    def keep(frame: VideoFrame) -> Picture:
        turn = Turn.rotation_of(frame) if official else Turn.of(frame)
        return Picture(encode_frame(frame, turn, aspect, size, settings.jpeg_quality, whole=whole), any(turn))

    if official:
        numbers = official_numbers(container, video.stream, start_s, settings.clip_seconds)
        return pick_frames(video.stream, video.packets, start_s, numbers, keep, numbered=True)
    if rate := settings.frames_per_second:
        count, step_s = max(int(np.ceil((length_s - TIME_TOLERANCE_S) * rate)), 1), 1 / rate
    else:
        count, step_s = settings.frames, length_s / settings.frames
    return pick_frames(video.stream, video.packets, start_s, [start_s + i * step_s for i in range(count)], keep)


def _refuse_bad(what: str, code: RejectCode, good: int, bad_share: float) -> None:
    if not good:
        raise ClipRejected(code, f"none of the {what} decodes")
    if bad_share > MAX_BAD_SHARE:
        bad, allowed = distinct(bad_share, MAX_BAD_SHARE, ".0%")
        raise ClipRejected(code, f"{bad} of the {what} does not decode, allowed are {allowed}")


def _shortfall(container: InputContainer, tracks: Tracks, start_s: float, seconds: float) -> str | None:
    """How much less is there than the file declares, in the `seconds` from start_s on; None when it is enough."""
    begin_s = (container.start_time or 0) / av.time_base
    claims = [(begin_s, begin_s + (container.duration or 0) / av.time_base, tracks.end_s)]
    if "mp4" in container.format.name:  # elsewhere FFmpeg fills the tracks' durations in from the whole
        claims += [(track.declared_start_s, track.declared_end_s, track.end_s) for track in tracks.read]
    start_s = start_s if np.isfinite(start_s) else begin_s
    for declared_start_s, declared_end_s, end_s in claims:
        expected_s = min(declared_end_s - start_s, seconds)
        allowed_s = (1 - MIN_SHARE_OF_DECLARED) * min(declared_end_s - declared_start_s, seconds)
        if expected_s > 0 and expected_s - (end_s - start_s) > allowed_s:
            return f"declares {expected_s:.2f} s but only {max(end_s - start_s, 0):.2f} s are there"
    return None


def _refuse_missing(container: InputContainer, tracks: Tracks, start_s: float, clip_seconds: float) -> None:
    """Raises ClipRejected when there is less than the file declares, or nothing of what sets the clip's clock."""
    if shortfall := _shortfall(container, tracks, start_s, clip_seconds):
        raise ClipRejected(RejectCode.TRUNCATED, shortfall)
    if tracks.read[0].presented:
        return
    if tracks.video is None:
        raise ClipRejected(RejectCode.NO_AUDIO, "the sound track is empty")
    if tracks.video.skipped:
        raise ClipRejected(RejectCode.CORRUPT_VIDEO, f"none of {tracks.video.skipped} packets is a key frame")
    if not any(track.presented for track in tracks.read):
        raise ClipRejected(RejectCode.TRUNCATED, "the file ends after its header")
    raise ClipRejected(RejectCode.NO_VIDEO, "the picture track is empty")


def _clip_span(
    container: InputContainer, tracks: Tracks, given_start_s: float | None, clip_seconds: float
) -> tuple[float, float]:
    """t0 on the file's clock and the length D of the picture, or of a sound alone, both in seconds.

    Raises ClipRejected.
    """
    first, audio = tracks.read[0], tracks.audio
    start_s = min(track.start_s for track in tracks.read) if given_start_s is None else given_start_s
    _refuse_missing(container, tracks, start_s, clip_seconds)
    if tracks.video and audio and not audio.presented:
        raise ClipRejected(RejectCode.NO_AV_OVERLAP, "no sound within the clip")
    start_s, end_s = first.start_s if given_start_s is None else given_start_s, _end_s(tracks)
    if tracks.video:
        lengths = [("picture", end_s - start_s), *([("sound", audio.seconds)] if audio else [])]
    else:
        lengths = [("sound", max(min(end_s, start_s + clip_seconds) - max(start_s, first.start_s), 0.0))]
    for what, seconds in lengths:
        if seconds < MIN_COMMON_SECONDS:
            got, needed = distinct(seconds, MIN_COMMON_SECONDS, ".2f")
            raise ClipRejected(RejectCode.TOO_SHORT, f"{got} s of {what}, {needed} s are needed")
    if tracks.video and audio:
        _refuse_apart(start_s, end_s, audio, clip_seconds)
    return start_s, min(end_s - start_s, clip_seconds)


def _refuse_apart(start_s: float, end_s: float, audio: Track, clip_seconds: float) -> None:
    """Raises ClipRejected unless the sound and a picture of this begin and end last long enough together."""
    common_s = min(end_s, audio.end_s, start_s + clip_seconds) - max(start_s, audio.start_s)
    if common_s < MIN_COMMON_SECONDS:
        got, needed = distinct(max(common_s, 0.0), MIN_COMMON_SECONDS, ".2f")
        raise ClipRejected(
            RejectCode.NO_AV_OVERLAP,
            f"picture at {start_s:.2f} to {end_s:.2f} s, sound at {audio.start_s:.2f} to {audio.end_s:.2f} s: "
            f"{got} s in common, {needed} s are needed",
        )


def _end_s(tracks: Tracks) -> float:
    """Where the picture ends, or the sound alone."""
    video, audio = tracks.video, tracks.audio
    if video and audio and video.presented == 1:
        return max(video.end_s, audio.end_s)  # a still stays on screen
    return tracks.read[0].end_s


def _rate_varies(video: Track, start_s: float, stop_s: float) -> bool:
    times_s = np.unique(video.times_s)
    # After the clip there are gaps where packets of frames shown earlier come later in the file.
    gaps_s = np.diff(times_s[(times_s >= start_s - TIME_TOLERANCE_S) & (times_s < stop_s)])
    return len(gaps_s) > 0 and float(np.ptp(gaps_s)) > 0.5 * float(np.median(gaps_s))

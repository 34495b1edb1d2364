"""One video file in, clip records out: what is accepted, what is refused, and the clip's clock.

A clip begins with the first picture (t0), or a number of clip lengths after it, and lasts `clip_seconds` or less.
Packets are read first, because their timestamps tell how long the picture really lasts before anything is
decoded; then each track is decoded once. Durations and frame counts in file headers are only used to notice
missing data, and where the official frame rule asks for them. Rules: spec data-path.md section 7.
"""

import av
import numpy as np
from av.container import InputContainer

from cavmae_ds.data.inputs import VideoInput
from cavmae_ds.data.pictures import encode_frame, official_numbers, pick_frames
from cavmae_ds.data.rejects import ClipRejected, RejectCode
from cavmae_ds.data.schema import AUDIO_RATE_HZ, FRAMES_PER_CLIP, ClipFlag, ClipRecord
from cavmae_ds.data.settings import MIN_COMMON_SECONDS, MIN_SHARE_OF_DECLARED, SHORT_BELOW_SHARE, PrepareSettings
from cavmae_ds.data.sound import read_sound
from cavmae_ds.data.tracks import (
    TIME_TOLERANCE_S,
    Track,
    find_tracks,
    opened,
    read_all,
    read_packets,
    read_packets_from,
)

MAX_BAD_SHARE = 0.1


def split_video(item: VideoInput, settings: PrepareSettings) -> list[VideoInput]:
    """The windows of a video: one after another from the first picture on, each `clip_seconds` long.

    A remainder of MIN_COMMON_SECONDS or more is a window of its own. A file that ends before it should has one
    window more, to be refused as truncated. Reads the whole file and decodes nothing. Raises ClipRejected.
    """
    with opened(item.path) as container:
        video, audio = find_tracks(container, settings.max_frame_pixels)
        read_all(container, video, audio)
        truncated = _shortfall(container, video, audio, video.start_s, np.inf) is not None
    if not video.presented:
        raise ClipRejected(RejectCode.NO_VIDEO, "the picture track is empty")
    picture_s = _picture_end_s(video, audio) - video.start_s
    windows = int((picture_s + TIME_TOLERANCE_S) / settings.clip_seconds)
    windows += truncated or picture_s - windows * settings.clip_seconds >= MIN_COMMON_SECONDS
    offsets_s = [k * settings.clip_seconds for k in range(max(windows, 1))]
    return [item.window_at(offset_s, video.start_s + offset_s if offset_s else None) for offset_s in offsets_s]


def read_clip(item: VideoInput, settings: PrepareSettings) -> ClipRecord:
    """Decodes `settings.clip_seconds` of a video into a record: its beginning, or the window that the item means.

    Frame i is the one on screen at t0 + i * D / 10, D = min(length of the picture, clip_seconds), or follows the
    official rule (see official_numbers). A single picture under a longer sound counts as a still that stays on
    screen. Raises ClipRejected.
    """
    return _read(item, settings, jump=True)


def _read(item: VideoInput, settings: PrepareSettings, *, jump: bool) -> ClipRecord:
    with opened(item.path) as container:
        video, audio = find_tracks(container, settings.max_frame_pixels)
        if item.start_s is None:
            read_packets(container, video, audio, settings.clip_seconds)
        elif not read_packets_from(container, video, audio, item.start_s, settings.clip_seconds, jump=jump) and jump:
            return _read(item, settings, jump=False)  # it landed too late
        start_s, picture_s = _clip_span(container, video, audio, item.start_s, settings.clip_seconds)
        source_start_s = (container.start_time or 0) / av.time_base
        official = settings.frame_rule == "official"
        wanted = (
            official_numbers(container, video.stream, start_s, settings.clip_seconds)
            if official
            else [start_s + i * picture_s / FRAMES_PER_CLIP for i in range(FRAMES_PER_CLIP)]
        )
        frames, bad_video = pick_frames(video.stream, video.packets, start_s, wanted, numbered=official)
        sound = read_sound(audio.stream, audio.packets, start_s, settings.clip_seconds, settings.channel)

    if not frames or bad_video > MAX_BAD_SHARE:
        raise ClipRejected(RejectCode.CORRUPT_VIDEO, f"{bad_video:.0%} of the picture does not decode")
    if not len(sound.samples) or sound.bad_share > MAX_BAD_SHARE:
        raise ClipRejected(RejectCode.CORRUPT_AUDIO, f"{sound.bad_share:.0%} of the sound does not decode")
    silent = not sound.samples.any()
    if silent and not settings.keep_silent:
        raise ClipRejected(RejectCode.SILENT_AUDIO, f"all {len(sound.samples)} samples are zero")

    times_s = tuple(round(time_s - start_s, 6) for time_s, _ in frames)
    covered_s = min(picture_s, len(sound.samples) / AUDIO_RATE_HZ)
    unusual = {
        ClipFlag.SHORT: covered_s < SHORT_BELOW_SHARE * settings.clip_seconds,
        ClipFlag.SILENT: silent,
        ClipFlag.ROTATED: any(frame.rotation for _, frame in frames),
        ClipFlag.AV_OFFSET_FILLED: sound.filled,
        ClipFlag.REPEATED_FRAMES: len(set(times_s)) < len(times_s),
        ClipFlag.SOME_CORRUPT_FRAMES: bad_video > 0,
        ClipFlag.VARIABLE_RATE: _rate_varies(video, start_s, start_s + settings.clip_seconds),
    }
    return ClipRecord(
        clip_id=item.clip_id,
        source=item.source,
        start_s=round(start_s - source_start_s, 6),
        audio=sound.samples,
        frames=tuple(encode_frame(frame, settings.frame_size, settings.jpeg_quality) for _, frame in frames),
        frame_times=times_s,
        labels=np.array(item.labels, np.int32),
        flags=ClipFlag.those(unusual),
    )


def _shortfall(container: InputContainer, video: Track, audio: Track, start_s: float, seconds: float) -> str | None:
    """How much less is there than the file declares, in the `seconds` from start_s on; None when it is enough."""
    begin_s = (container.start_time or 0) / av.time_base
    claims = [(begin_s, begin_s + (container.duration or 0) / av.time_base, max(video.end_s, audio.end_s))]
    if "mp4" in container.format.name:  # elsewhere FFmpeg fills the tracks' durations in from the whole
        claims += [(track.declared_start_s, track.declared_end_s, track.end_s) for track in (video, audio)]
    start_s = start_s if np.isfinite(start_s) else begin_s
    for declared_start_s, declared_end_s, end_s in claims:
        expected_s = min(declared_end_s - start_s, seconds)
        allowed_s = (1 - MIN_SHARE_OF_DECLARED) * min(declared_end_s - declared_start_s, seconds)
        if expected_s > 0 and expected_s - (end_s - start_s) > allowed_s:
            return f"declares {expected_s:.2f} s but only {max(end_s - start_s, 0):.2f} s are there"
    return None


def _clip_span(
    container: InputContainer, video: Track, audio: Track, given_start_s: float | None, clip_seconds: float
) -> tuple[float, float]:
    """t0 on the file's clock and the length D of the picture, both in seconds. Raises ClipRejected."""
    start_s = min(video.start_s, audio.start_s) if given_start_s is None else given_start_s
    if shortfall := _shortfall(container, video, audio, start_s, clip_seconds):
        raise ClipRejected(RejectCode.TRUNCATED, shortfall)
    if not video.presented:
        raise ClipRejected(RejectCode.NO_VIDEO, "the picture track is empty")
    if not audio.presented:
        raise ClipRejected(RejectCode.NO_AV_OVERLAP, "no sound within the clip")
    start_s, end_s = video.start_s if given_start_s is None else given_start_s, _picture_end_s(video, audio)
    for what, seconds in (("picture", end_s - start_s), ("sound", audio.seconds)):
        if seconds < MIN_COMMON_SECONDS:
            raise ClipRejected(RejectCode.TOO_SHORT, f"{seconds:.2f} s of {what}")
    common_s = min(end_s, audio.end_s, start_s + clip_seconds) - max(start_s, audio.start_s)
    if common_s < MIN_COMMON_SECONDS:
        raise ClipRejected(
            RejectCode.NO_AV_OVERLAP,
            f"picture at {start_s:.2f} to {end_s:.2f} s, sound at {audio.start_s:.2f} to {audio.end_s:.2f} s",
        )
    return start_s, min(end_s - start_s, clip_seconds)


def _picture_end_s(video: Track, audio: Track) -> float:
    return max(video.end_s, audio.end_s) if video.presented == 1 else video.end_s  # a still stays on screen


def _rate_varies(video: Track, start_s: float, stop_s: float) -> bool:
    times_s = np.unique(video.times_s)
    # After the clip there are gaps where packets of frames shown earlier come later in the file.
    gaps_s = np.diff(times_s[(times_s >= start_s - TIME_TOLERANCE_S) & (times_s < stop_s)])
    return len(gaps_s) > 0 and float(np.ptp(gaps_s)) > 0.5 * float(np.median(gaps_s))

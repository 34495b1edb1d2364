"""The sound of a clip: one channel, aligned with the picture, at AUDIO_RATE_HZ."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.packet import Packet
from av.stream import Stream

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ

SYNC_TOLERANCE_S = 0.02  # timestamps may be this far off (rounding, jitter) before they mean a gap
RESAMPLER_TAIL_S = 0.1  # sound after the clip's end that the resampling filter may look at


class Sound(NamedTuple):
    samples: np.ndarray  # int16 [n]
    filled: bool  # silence stands where the track had a gap or began late
    bad_share: float  # of packets that did not decode, or of time that is missing: the larger


def read_sound(
    stream: Stream,
    packets: list[Packet],
    start_s: float,
    clip_seconds: float,
    channel: Literal["first", "mean"],
) -> Sound:
    """Sound from start_s on, at most clip_seconds of it, never padded at the end.

    Each decoded frame is put where its timestamp says, so a late start or a lost packet does not shift
    what follows. Resampled by libswresample, as the ffmpeg program does (spec data-path.md section 3).
    """
    line = np.zeros(0, np.float32)  # the clip at the source's own rate; made when the rate is known
    to_planar = AudioResampler(format="fltp")
    rate_hz = end = seen = bad = missing = 0
    cursor: int | None = None
    filled = False
    for frame in _decoded(stream, packets):
        seen += 1
        if frame is None or frame.is_corrupt or (rate_hz and frame.sample_rate != rate_hz):
            bad += 1
            continue
        if not rate_hz:
            rate_hz = frame.sample_rate
            line = np.zeros(round((clip_seconds + RESAMPLER_TAIL_S) * rate_hz), np.float32)
        for planar in to_planar.resample(frame):
            channels = planar.to_ndarray()  # [channels, samples]
            mono = channels[0] if channel == "first" else channels.mean(0)
            if frame.pts is not None:
                stamped = round((float(frame.pts * (stream.time_base or 0)) - start_s) * rate_hz)
                if cursor is None or abs(stamped - cursor) > SYNC_TOLERANCE_S * rate_hz:
                    filled |= stamped > max(cursor or 0, 0) + SYNC_TOLERANCE_S * rate_hz
                    missing += max(stamped - cursor, 0) if cursor is not None else 0
                    cursor = stamped
            cursor = cursor or 0
            skip = max(-cursor, 0)  # samples before the clip
            room = line[max(cursor, 0) :]
            part = mono[skip : skip + len(room)]
            room[: len(part)] = part
            cursor += len(mono)
            end = max(end, min(cursor, len(line)))
        if rate_hz and end == len(line):
            break
    samples = resampled(line[:end], rate_hz)[: round(clip_seconds * AUDIO_RATE_HZ)]
    return Sound(samples, filled, max(bad / max(seen, 1), missing / max(end, 1)))


def _decoded(stream: Stream, packets: list[Packet]) -> Iterator[AudioFrame | None]:
    for packet in [*packets, None]:  # None empties the decoder
        try:
            yield from stream.decode(packet)  # type: ignore[attr-defined]
        except av.FFmpegError:
            yield None


def resampled(line: np.ndarray, rate_hz: int) -> np.ndarray:
    """float32 [samples] at rate_hz -> int16 [n] at AUDIO_RATE_HZ."""
    if not len(line):
        return np.zeros(0, np.int16)
    frame = AudioFrame.from_ndarray(line[None], format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    resampler = AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE_HZ)
    parts = [part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(parts)[: round(len(line) / rate_hz * AUDIO_RATE_HZ)]

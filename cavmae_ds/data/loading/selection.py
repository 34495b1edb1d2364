"""Which frames of a clip a model is shown, and which part of its audio: pure functions of what the record holds.

F frames of a record at ascending times, T of them wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ
from cavmae_ds.data.format.shard_file import Contents, Selection
from cavmae_ds.data.input_spec import InputSpec

POSITIONS = 10
"""Places in a clip, evenly spaced, at which evaluation looks."""
MIDDLE_POSITION = POSITIONS // 2
"""The one where evaluation looks by default (spec/cav-mae.md 3.6)."""
TOLERANCE_S = 1e-3
"""Times are stored in float32, so the last frame of a window may seem to lie just behind the clip's last one."""


def training_selection(inputs: InputSpec, contents: Contents, draw: Callable[[int], int]) -> Selection:
    """A random frame, or T frames from a random one on among those after which T frames fit; and their audio.

    draw: n -> a random number 0 ... n - 1. A window of audio without frames begins at a random sample.
    """
    times = contents.frame_times
    if inputs.frames == 0:
        samples = _samples(inputs, contents)
        whole = samples == contents.n_samples
        return Selection((), 0 if whole else draw(contents.n_samples - samples + 1), samples)
    if len(times) == 0:
        frames: tuple[int, ...] = ()
    elif inputs.frames == 1:
        frames = (draw(len(times)),)
    else:
        starts = int((times <= _last_start(inputs, times) + TOLERANCE_S).sum())
        frames = _window(inputs, times, times[draw(starts or len(times))])
    return _with_audio(inputs, contents, frames, 0.5)


def evaluation_selection(
    inputs: InputSpec, contents: Contents, position: int = MIDDLE_POSITION, positions: int = POSITIONS
) -> Selection:
    """The frame at one of several positions evenly over the clip, or the T frames centred there; and their audio.

    Position k of n is frame k * F // n. A window that would stick out of the clip begins or ends with it.
    """
    times = contents.frame_times
    frames: tuple[int, ...] = ()
    if inputs.frames and len(times):
        index = position * len(times) // positions
        if inputs.frames == 1:
            frames = (index,)
        else:
            start = times[index] - _length_s(inputs) / 2
            frames = _window(inputs, times, max(min(start, _last_start(inputs, times)), times[0]))
    return _with_audio(inputs, contents, frames, position / positions)


def _length_s(inputs: InputSpec) -> float:
    """From the first to the last of T frames."""
    return (inputs.frames - 1) * inputs.frame_spacing_seconds


def _last_start(inputs: InputSpec, times: NDArray[np.float32]) -> float:
    """Seconds from clip start; before the first frame of a clip that is too short."""
    return float(times[-1]) - _length_s(inputs)


def _window(inputs: InputSpec, times: NDArray[np.float32], start: float) -> tuple[int, ...]:
    """T frames from `start` on, each the stored one nearest in time. A clip that is too short begins again at its end.

    There the first frame follows the last after the mean distance of two frames.
    """
    first, last = float(times[0]), float(times[-1])
    wanted = float(start) + inputs.frame_spacing_seconds * np.arange(inputs.frames)  # [T] seconds
    stored = times.astype(np.float64)
    if _last_start(inputs, times) + TOLERANCE_S < first:
        period = (last - first) * len(times) / max(len(times) - 1, 1) or 1.0
        wanted = first + (wanted - first) % period
        stored = np.append(stored, first + period)
    nearest = np.abs(wanted[:, None] - stored).argmin(1) % len(times)  # [T]
    return tuple(nearest.tolist())


def _samples(inputs: InputSpec, contents: Contents) -> int:
    """Of audio that are read."""
    if not inputs.log_mel_frames:
        return 0
    if inputs.audio_seconds is None:
        return contents.n_samples
    return min(round(inputs.audio_seconds * AUDIO_RATE_HZ), contents.n_samples)


def _with_audio(inputs: InputSpec, contents: Contents, frames: tuple[int, ...], share: float) -> Selection:
    """Frames with the audio that belongs to them; without frames that around a share of the clip."""
    samples = _samples(inputs, contents)
    if samples in (0, contents.n_samples):
        return Selection(frames, 0, samples)
    if not frames:
        first = share * contents.n_samples - samples / 2
    elif inputs.audio_alignment == "start":
        first = float(contents.frame_times[frames[0]]) * AUDIO_RATE_HZ
    else:
        chosen = contents.frame_times[list(frames)]
        first = (float(chosen.min()) + float(chosen.max())) / 2 * AUDIO_RATE_HZ - samples / 2
    return Selection(frames, min(max(round(first), 0), contents.n_samples - samples), samples)

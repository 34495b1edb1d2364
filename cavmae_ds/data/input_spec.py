"""What data and its transforms know of a model: the sizes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """What a model reads of a clip."""

    log_mel_frames: int
    """Length of the log-mel, frames of 10 ms."""
    mel_bins: int
    frame_size: int
    """Side of the square video frame, pixels."""

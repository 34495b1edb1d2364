"""What data and its transforms know of a model: what it reads of a clip, and in which sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cavmae_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model reads of a clip. Raises ConfigError for values that cannot be."""

    log_mel_frames: int
    """Length of the log-mel, frames of 10 ms; shorter audio is padded, longer audio cut. 0: no audio is read."""
    mel_bins: int = 128
    front_end: str = "kaldi"
    """Which log-mel: a key of LOG_MELS in transforms/front_end.py."""
    audio_seconds: float | None = None
    """Length of the window of audio; None: the whole clip. A window lies within the clip, and is shorter if that is."""
    audio_alignment: Literal["centre", "start"] = "centre"
    """A window is centred on the middle of the frames' times, or begins with the first frame."""
    frames: int = 1
    """T, video frames read of a clip; 0: none."""
    frame_spacing_seconds: float = 0.0
    """Between two of several frames."""
    frame_size: int = 224
    """Side of the square video frame, pixels."""
    frame_fit: Literal["crop", "whole"] = "crop"
    """crop: frames of another shape are scaled and cut to frame_size by the loader worker. whole: frames keep their
    shape, smaller ones of a batch are padded with zeros at the right and bottom."""
    augmentations: tuple[str, ...] = ()
    """What training does to frames on the device, in order: keys of AUGMENTATIONS in transforms/frames.py."""

    def __post_init__(self) -> None:
        for name, least in (("log_mel_frames", 0), ("mel_bins", 1), ("frames", 0), ("frame_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"a model's {name} must be at least {least}, got {getattr(self, name)}")
        if not (self.log_mel_frames or self.frames):
            raise ConfigError("a model's log_mel_frames and frames are both 0: it must read audio or video frames")
        if self.audio_seconds is not None and not 0 < self.audio_seconds < math.inf:
            raise ConfigError(f"a model's audio_seconds must be above 0, or None, got {self.audio_seconds}")
        if self.frames > 1 and not 0 < self.frame_spacing_seconds < math.inf:
            raise ConfigError(
                f"a model's frame_spacing_seconds must be above 0 for {self.frames} frames, "
                f"got {self.frame_spacing_seconds}"
            )
        for name, allowed in (("audio_alignment", ("centre", "start")), ("frame_fit", ("crop", "whole"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"a model's {name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.augmentations and self.frame_fit == "whole":
            raise ConfigError(
                f"a model's frame_fit is whole, so its frames are padded and cannot be augmented, "
                f"got augmentations {', '.join(self.augmentations)}"
            )

"""What training does to video frames, batched on the device: pure functions of (seed, repeat of the clip, clip index).

B clips of T frames. A clip's frames are changed alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cavmae_ds.distributed.per_sample_rng import Stream, clip_uniform
from cavmae_ds.errors import ConfigError


def flip(frames: Tensor, seed: int, epoch: Tensor, clip_index: Tensor) -> Tensor:
    """Mirrors every second clip left to right, at random."""
    flipped = clip_uniform(seed, epoch, clip_index, Stream.FLIP, 1)[:, 0] < 0.5  # [B]
    return torch.where(flipped[:, None, None, None, None], frames.flip(-1), frames)


AUGMENTATIONS: dict[str, Callable[[Tensor, int, Tensor, Tensor], Tensor]] = {"flip": flip}
"""Name -> function of frames [B, T, 3, H, W], seed, repeat of the clip [B] and clip index [B]."""


class FrameAugmentation:
    """Several of AUGMENTATIONS, one after another."""

    def __init__(self, names: tuple[str, ...], seed: int):
        """Raises ConfigError for an unknown name."""
        if unknown := [name for name in names if name not in AUGMENTATIONS]:
            raise ConfigError(
                f"a model's augmentations must be among {', '.join(AUGMENTATIONS)}, got {', '.join(unknown)}"
            )
        self._functions, self._seed = [AUGMENTATIONS[name] for name in names], seed

    def __call__(self, frames: Tensor, epoch: Tensor, clip_index: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] of these clips in this repeat, changed."""
        for function in self._functions:
            frames = function(frames, self._seed, epoch, clip_index)
        return frames

"""Randomness that belongs to the clip: a draw is a pure function of seed, epoch, clip, stream and element.

Nothing else enters (no process, no worker, no order), so a clip gets the same mask and frame on every device,
for every number of ranks, after every resume. The numbers are Philox draws; the key holds seed and epoch, the
counter holds clip, stream and element:

    key    = seed (32 bits) | epoch << 32 (31 bits)
    offset = element (16 bits) | stream << 16 (8 bits) | clip index << 24 (39 bits)
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

from cavmae_ds.kernels.philox import philox_reference, philox_uniform

Integers = TypeVar("Integers", int, Tensor)


class Stream(IntEnum):
    """What a draw decides. Numbers are for ever: a new one would change every run that is resumed."""

    AUDIO_MASK = 0
    IMAGE_MASK = 1
    AUDIO_COLUMNS = 2
    AUDIO_ROWS = 3
    FRAME = 4
    HELD_OUT = 5
    MIXUP = 6
    PARTNER = 7
    BANDS = 8
    LOUDNESS = 9
    ROLL = 10
    PARTNER_FRAME = 11
    FLIP = 12
    NOISE = 128  # and all after it: see clip_noise


def clip_uniform(seed: int, epoch: int | Tensor, clip_index: Tensor, stream: int, count: int) -> Tensor:
    """`count` draws in [0, 1) for each clip: [B, count] float32 on the device of clip_index, int64 [B].

    epoch is one number, or int64 [B] when the batch straddles an epoch's end. Raises ValueError for a number
    out of its range (see above); a tensor on a device is taken as is, for reading it back would stall.
    """
    return philox_uniform(*clip_counters(seed, epoch, clip_index, stream, count))


def clip_noise(seed: int, epoch: int | Tensor, clip_index: Tensor, count: int) -> Tensor:
    """As clip_uniform, with count up to 128 * 65536: the element's upper bits count streams up from NOISE."""
    most = 1 << 16
    parts = [
        clip_uniform(seed, epoch, clip_index, Stream.NOISE + start // most, min(most, count - start))
        for start in range(0, count, most)
    ]
    return torch.cat(parts, dim=1)


def clip_counters(seed: int, epoch: int | Tensor, clip_index: Tensor, stream: int, count: int) -> tuple[Tensor, Tensor]:
    """Where clip_uniform draws: Philox keys [1 or B, 1] and offsets [B, count], int64. Raises ValueError as it does."""
    if not 0 < count <= 1 << 16:
        raise ValueError(f"count must lie in 1 ... 65536, got {count}")
    element = torch.arange(count, device=clip_index.device)
    key = torch.as_tensor(_key(seed, epoch), device=clip_index.device).reshape(-1, 1)  # [1 or B, 1]
    return key, _offset(clip_index, stream).unsqueeze(-1) | element  # [B, count]


def require_ranges(seed: int, epoch: int | Tensor, clip_index: int | Tensor) -> None:
    """Raise ValueError for a number that does not fit its bits (see above)."""
    _require("seed", seed, bits=32)
    _require("epoch", epoch, bits=31)
    _require("clip_index", clip_index, bits=39)


def frame_choice(
    seed: int, epoch: int | Tensor, clip_index: Integers, frames: int, stream: int = Stream.FRAME
) -> Integers:
    """Which of a clip's frames 0 ... frames - 1 this epoch shows: plain ints, or int64 tensors [B].

    Frames are equally likely to within 2^-32. Raises ValueError for a number out of its range.
    """
    if not 0 < frames < 1 << 31:
        raise ValueError(f"frames must lie in 1 ... 2^31 - 1, got {frames}")
    word = philox_reference(_key(seed, epoch), _offset(clip_index, stream))
    return (word * frames) >> 32  # multiply-shift: a 32-bit word scaled to the number of frames


def _key(seed: int, epoch: int | Tensor) -> Any:
    _require("seed", seed, bits=32)
    _require("epoch", epoch, bits=31)
    return epoch << 32 | seed


def _offset(clip_index: Integers, stream: int) -> Integers:
    _require("clip_index", clip_index, bits=39)
    return clip_index << 24 | int(stream) << 16


def _require(name: str, value: int | Tensor, bits: int) -> None:
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.numel() == 0:
            return
        extremes = int(value.min()), int(value.max())
    else:
        extremes = value, value
    for number in extremes:
        if not 0 <= number < 1 << bits:
            raise ValueError(f"{name} must lie in 0 ... 2^{bits} - 1, got {number}")

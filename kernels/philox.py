"""Philox-4x32-10, a counter-based random number generator, in the numbering of Triton's tl.rand.

A draw is a pure function of a 64-bit seed (the key) and a 64-bit offset (the counter's lower half; the upper
half is 0), so it is the same on every device.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from cavmae_ds.kernels.launching import can_launch, launch

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF
SCALE = 4.6566127342e-10  # the largest float32 s with (2^31 - 1) s < 1 after rounding, just under 2^-31
BLOCK = 1024

Integers = TypeVar("Integers", int, Tensor)


def philox_words(
    key: tuple[Integers, Integers], counter: tuple[Integers, Integers, Integers, Integers]
) -> tuple[Integers, Integers, Integers, Integers]:
    """The four 32-bit words at a counter of four 32-bit words under a key of two.

    Works on Python ints and on int64 tensors alike: only bits below 2^64 of a product are asked for, and they
    survive the tensors' wrap-around.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & WORD) ^ c1 ^ k0,
            second & WORD,
            ((first >> 32) & WORD) ^ c3 ^ k1,
            first & WORD,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def philox_reference(seed: Any, offset: Integers) -> Integers:
    """tl.randint's draw as an unsigned 32-bit number: Python ints, or int64 tensors that broadcast."""
    low, high = offset & WORD, (offset >> 32) & WORD
    return philox_words((seed & WORD, (seed >> 32) & WORD), (low, high, low * 0, low * 0))[0]


def uniform_reference(seed: Tensor, offset: Tensor) -> Tensor:
    """tl.rand's draw in [0, 1), float32, for int64 tensors that broadcast."""
    word = philox_reference(seed, offset)
    folded = torch.where(word >> 31 == 1, word ^ WORD, word)  # Triton folds the sign bit: 31 bits are left
    return folded.float() * SCALE


@triton.jit
def _uniform_kernel(seed, offset, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < count
    draw = tl.rand(tl.load(seed + place, live, 0), tl.load(offset + place, live, 0))
    tl.store(out + place, draw, live)


def philox_uniform(seed: Tensor, offset: Tensor) -> Tensor:
    """Uniform draws in [0, 1), float32: tl.rand of int64 seeds and offsets that broadcast, bit for bit.

    The kernel runs on CUDA, and on the CPU when TRITON_INTERPRET=1 was set before import; else the reference.
    """
    if not can_launch(offset):
        return uniform_reference(seed, offset)
    seed, offset = (x.contiguous() for x in torch.broadcast_tensors(seed, offset))
    out = torch.empty(offset.shape, dtype=torch.float32, device=offset.device)
    if count := out.numel():
        launch(_uniform_kernel, (triton.cdiv(count, BLOCK),), seed, offset, out, count, BLOCK=BLOCK)
    return out

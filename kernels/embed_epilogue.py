"""The embedding's end: bias, position of the kept patch and modality added to projected patches in one pass.

B clips, K kept of L patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cavmae_ds.kernels.checks import FLOATS, REFERENCE_FLOATS, require
from cavmae_ds.kernels.launching import can_launch, launch
from cavmae_ds.kernels.tiles import width_block

ELEMENTS = 4096  # of a forward tile: 32 a thread
BACKWARD_ELEMENTS = 2048
CLIPS_PER_PROGRAM = 128  # in backward; one partial sum each


def embed_epilogue_reference(tokens: Tensor, bias: Tensor, positions: Tensor, modality: Tensor, keep: Tensor) -> Tensor:
    """What embed_epilogue means, in plain torch."""
    dtype = tokens.dtype
    return tokens + bias.to(dtype) + positions.to(dtype)[keep] + modality.to(dtype)


@triton.jit
def _epilogue_kernel(
    tokens,
    bias,
    positions,
    modality,
    keep,
    out,
    count,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: ROWS of the B K tokens, BLOCK columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside, live = column < WIDTH, row < count
    at, here = row[:, None] * WIDTH + column, live[:, None] & inside
    patch = tl.load(keep + row, live, 0)
    x = tl.load(tokens + at, here, 0.0).to(tl.float32)
    x += tl.load(positions + patch[:, None] * WIDTH + column, here, 0.0).to(tl.float32)
    same = tl.load(bias + column, inside, 0.0).to(tl.float32) + tl.load(modality + column, inside, 0.0).to(tl.float32)
    tl.store(out + at, (x + same).to(out.dtype.element_ty), here)


@triton.jit
def _epilogue_backward_kernel(
    gradient,
    token_of,
    sums,
    clips,
    patches,
    kept,
    WIDTH: tl.constexpr,
    CLIPS: tl.constexpr,
    CLIPS_PER_PROGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the gradient of a patch's position over CLIPS_PER_PROGRAM clips, in their order, BLOCK columns."""
    patch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    split = tl.program_id(2).to(tl.int64)
    inside = column < WIDTH
    total = tl.zeros((CLIPS, BLOCK), tl.float32)
    for start in range(0, CLIPS_PER_PROGRAM, CLIPS):
        clip = split * CLIPS_PER_PROGRAM + start + tl.arange(0, CLIPS)
        token = tl.load(token_of + clip * patches + patch, clip < clips, -1)  # -1: hidden in this clip
        at = (clip * kept + token)[:, None] * WIDTH + column
        total += tl.load(gradient + at, (token >= 0)[:, None] & inside, 0.0).to(tl.float32)
    tl.store(sums + (split * patches + patch) * WIDTH + column, tl.sum(total, 0)[None, :], inside)


class _EmbedEpilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, bias: Tensor, positions: Tensor, modality: Tensor, keep: Tensor) -> Tensor:
        clips, kept, width = tokens.shape
        out = torch.empty_like(tokens)
        block = width_block(width)
        tile = max(1, ELEMENTS // block)
        launch(
            _epilogue_kernel,
            (triton.cdiv(clips * kept, tile), triton.cdiv(width, block)),
            tokens,
            bias,
            positions,
            modality,
            keep,
            out,
            clips * kept,
            WIDTH=width,
            ROWS=tile,
            BLOCK=block,
        )
        ctx.save_for_backward(keep)
        ctx.patches, ctx.dtypes = len(positions), (bias.dtype, positions.dtype, modality.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (keep,), patches = ctx.saved_tensors, ctx.patches
        to_tokens, *to_rows = ctx.needs_input_grad[:4]
        if not any(to_rows):
            return gradient, None, None, None, None
        gradient = gradient.contiguous()
        clips, kept, width = gradient.shape
        splits = max(1, triton.cdiv(clips, CLIPS_PER_PROGRAM))  # at least one, to write zeros for no clips
        order = torch.arange(kept, device=keep.device).expand(clips, kept)
        token_of = keep.new_full((clips, patches), -1).scatter(1, keep, order)  # [B, L] place of each patch
        sums = gradient.new_empty(splits, patches, width, dtype=torch.float32)
        block = width_block(width)
        launch(
            _epilogue_backward_kernel,
            (patches, triton.cdiv(width, block), splits),
            gradient,
            token_of,
            sums,
            clips,
            patches,
            kept,
            WIDTH=width,
            CLIPS=max(1, BACKWARD_ELEMENTS // block),
            CLIPS_PER_PROGRAM=CLIPS_PER_PROGRAM,
            BLOCK=block,
        )
        axes = (0, 1), (0,), (0, 1)  # every token has the bias and the modality, only its own position
        gradients = [
            sums.sum(axis).to(dtype) if needed else None
            for needed, axis, dtype in zip(to_rows, axes, ctx.dtypes, strict=True)
        ]
        return gradient if to_tokens else None, *gradients, None


@torch.compiler.disable  # dynamo loses the gradient of Functions that fill their output in place
def _fused(*inputs: Tensor) -> Tensor:
    return _EmbedEpilogue.apply(*inputs)


def embed_epilogue(tokens: Tensor, bias: Tensor, positions: Tensor, modality: Tensor, keep: Tensor) -> Tensor:
    """Tokens [B, K, D] + bias [D] + positions [L, D] of the kept patches + modality [D]: [B, K, D], tokens' dtype.

    keep is int64 [B, K], no patch twice in a clip. The sum is made in float32 and rounded once. Gradients for all
    but keep, in a fixed order of addition. Raises ValueError for what does not fit.
    """
    require("tokens", tokens, ("B", "K", "D"), REFERENCE_FLOATS)
    clips, kept, width = tokens.shape
    require("bias", bias, (width,), REFERENCE_FLOATS)
    require("positions", positions, ("L", width), REFERENCE_FLOATS)
    require("modality", modality, (width,), REFERENCE_FLOATS)
    require("keep", keep, (clips, kept), (torch.int64,))
    tensors = tokens, bias, positions, modality, keep
    fused = can_launch(*tensors) and all(x.dtype in FLOATS for x in tensors[:4])
    return (_fused if fused else embed_epilogue_reference)(*tensors)

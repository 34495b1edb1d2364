"""The decoder's input: visible tokens back in their places, mask tokens in all others, position and modality added.

B clips; La, Lv patches of audio and image (L both), Ka, Kv of them visible; D width of the decoder.
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
BACKWARD_ELEMENTS = 2048  # backward keeps two sums beside the tile
CLIPS_PER_PROGRAM = 128  # in backward: fewer would cost memory traffic for partial sums, more would idle the card


def unshuffle_reference(
    visible: Tensor,
    mask_token: Tensor,
    positions_a: Tensor,
    positions_v: Tensor,
    modality_a: Tensor,
    modality_v: Tensor,
    restore_a: Tensor,
    restore_v: Tensor,
    kept_a: int,
) -> Tensor:
    """What unshuffle means, in plain torch."""

    def stream(tokens: Tensor, positions: Tensor, modality: Tensor, restore: Tensor) -> Tensor:
        clips, kept, width = tokens.shape
        hidden = mask_token.to(tokens.dtype).expand(clips, restore.shape[1] - kept, width)
        shuffled = torch.cat([tokens, hidden], dim=1)  # [B, L, D]
        rows = shuffled.gather(1, restore.unsqueeze(-1).expand(-1, -1, width))
        return rows + positions.to(rows.dtype) + modality.to(rows.dtype)

    audio, image = visible[:, :kept_a], visible[:, kept_a:]
    return torch.cat(
        [stream(audio, positions_a, modality_a, restore_a), stream(image, positions_v, modality_v, restore_v)], dim=1
    )


@triton.jit
def _unshuffle_kernel(
    visible,
    mask_token,
    positions_a,
    positions_v,
    modality_a,
    modality_v,
    restore_a,
    restore_v,
    out,
    patches_a,
    patches_v,
    kept_a,
    kept_v,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: ROWS of a clip's patches, BLOCK columns. Masked loads of both modalities; one of them is live."""
    clip = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < WIDTH
    audio, image = row < patches_a, (row >= patches_a) & (row < patches_a + patches_v)
    place = tl.load(restore_a + clip * patches_a + row, audio, 0)
    place += tl.load(restore_v + clip * patches_v + (row - patches_a), image, 0)
    seen = (audio & (place < kept_a)) | (image & (place < kept_v))
    token = clip * (kept_a + kept_v) + place + tl.where(audio, 0, kept_a)

    x = tl.load(visible + token[:, None] * WIDTH + column, seen[:, None] & inside, 0.0).to(tl.float32)
    x = tl.where(seen[:, None], x, tl.load(mask_token + column, inside, 0.0).to(tl.float32))
    at_a, at_v = row[:, None] * WIDTH + column, (row - patches_a)[:, None] * WIDTH + column
    x += tl.load(positions_a + at_a, audio[:, None] & inside, 0.0).to(tl.float32)
    x += tl.load(positions_v + at_v, image[:, None] & inside, 0.0).to(tl.float32)
    of_audio = tl.load(modality_a + column, inside, 0.0).to(tl.float32)
    of_image = tl.load(modality_v + column, inside, 0.0).to(tl.float32)
    x += tl.where(audio[:, None], of_audio, of_image)

    at = (clip * (patches_a + patches_v) + row)[:, None] * WIDTH + column
    tl.store(out + at, x.to(out.dtype.element_ty), (audio | image)[:, None] & inside)


@triton.jit
def _unshuffle_backward_kernel(
    gradient,
    restore_a,
    restore_v,
    visible_gradient,
    position_sums,
    hidden_sums,
    clips,
    patches_a,
    patches_v,
    kept_a,
    kept_v,
    WIDTH: tl.constexpr,
    TO_VISIBLE: tl.constexpr,
    SUMS: tl.constexpr,
    CLIPS: tl.constexpr,
    CLIPS_PER_PROGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: a patch's gradient in CLIPS_PER_PROGRAM clips, BLOCK columns.

    Hands rows of visible tokens on; adds up all rows (position, modality) and those of mask tokens, in clip order.
    """
    patch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    first = tl.program_id(2).to(tl.int64) * CLIPS_PER_PROGRAM
    inside, audio = column < WIDTH, patch < patches_a
    kept, first_token = tl.where(audio, kept_a, kept_v), tl.where(audio, 0, kept_a)
    total = tl.zeros((CLIPS, BLOCK), tl.float32)
    hidden = tl.zeros((CLIPS, BLOCK), tl.float32)
    for start in range(0, CLIPS_PER_PROGRAM, CLIPS):
        clip = first + start + tl.arange(0, CLIPS)
        live = clip < clips
        place = tl.load(restore_a + clip * patches_a + patch, live & audio, 0)
        place += tl.load(restore_v + clip * patches_v + (patch - patches_a), live & (patch >= patches_a), 0)
        seen = (place < kept)[:, None]
        at = (clip * (patches_a + patches_v) + patch)[:, None] * WIDTH + column
        g = tl.load(gradient + at, live[:, None] & inside, 0.0)
        if TO_VISIBLE:
            to = (clip * (kept_a + kept_v) + first_token + place)[:, None] * WIDTH + column
            tl.store(visible_gradient + to, g, live[:, None] & seen & inside)
        if SUMS:
            total += g.to(tl.float32)
            hidden += tl.where(seen, 0.0, g.to(tl.float32))
    if SUMS:
        partial = (tl.program_id(2).to(tl.int64) * (patches_a + patches_v) + patch) * WIDTH + column
        tl.store(position_sums + partial, tl.sum(total, 0)[None, :], inside)
        tl.store(hidden_sums + partial, tl.sum(hidden, 0)[None, :], inside)


class _Unshuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        visible, *rows, restore_a, restore_v, kept_a = inputs
        clips, tokens, width = visible.shape
        patches_a, patches_v = restore_a.shape[1], restore_v.shape[1]
        out = visible.new_empty(clips, patches_a + patches_v, width)
        block = width_block(width)
        tile = max(1, ELEMENTS // block)
        launch(
            _unshuffle_kernel,
            (clips, triton.cdiv(patches_a + patches_v, tile), triton.cdiv(width, block)),
            visible,
            *rows,
            restore_a,
            restore_v,
            out,
            patches_a,
            patches_v,
            kept_a,
            tokens - kept_a,
            WIDTH=width,
            ROWS=tile,
            BLOCK=block,
        )
        ctx.save_for_backward(restore_a, restore_v)
        ctx.kept_a, ctx.tokens, ctx.dtypes = kept_a, tokens, [x.dtype for x in rows]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        restore_a, restore_v = ctx.saved_tensors
        gradient = gradient.contiguous()
        clips, patches, width = gradient.shape
        patches_a, patches_v = restore_a.shape[1], restore_v.shape[1]
        to_visible, *to_rows = ctx.needs_input_grad[:6]
        splits = max(1, triton.cdiv(clips, CLIPS_PER_PROGRAM))  # at least one, to write zeros for no clips
        sums = gradient.new_empty(2, splits if any(to_rows) else 0, patches, width, dtype=torch.float32)
        visible_gradient = gradient.new_empty(clips, ctx.tokens if to_visible else 0, width)
        block = width_block(width)
        launch(
            _unshuffle_backward_kernel,
            (patches, triton.cdiv(width, block), splits),
            gradient,
            restore_a,
            restore_v,
            visible_gradient,
            *sums,
            clips,
            patches_a,
            patches_v,
            ctx.kept_a,
            ctx.tokens - ctx.kept_a,
            WIDTH=width,
            TO_VISIBLE=to_visible,
            SUMS=any(to_rows),
            CLIPS=max(1, BACKWARD_ELEMENTS // block),
            CLIPS_PER_PROGRAM=CLIPS_PER_PROGRAM,
            BLOCK=block,
        )
        mask_token, positions_a, positions_v, modality_a, modality_v = to_rows
        position_sums, hidden_sums = sums  # [S, L, D]
        audio, image = position_sums[:, :patches_a], position_sums[:, patches_a:]
        to_sum = (
            (mask_token, hidden_sums, (0, 1)),
            (positions_a, audio, (0,)),
            (positions_v, image, (0,)),
            (modality_a, audio, (0, 1)),
            (modality_v, image, (0, 1)),
        )
        gradients = [
            partial.sum(axes).to(dtype) if needed else None
            for (needed, partial, axes), dtype in zip(to_sum, ctx.dtypes, strict=True)
        ]
        return visible_gradient if to_visible else None, *gradients, None, None, None


@torch.compiler.disable  # dynamo loses the gradient of Functions that fill their output in place
def _fused(*inputs: Any) -> Tensor:
    return _Unshuffle.apply(*inputs)


def unshuffle(
    visible: Tensor,
    mask_token: Tensor,
    positions_a: Tensor,
    positions_v: Tensor,
    modality_a: Tensor,
    modality_v: Tensor,
    restore_a: Tensor,
    restore_v: Tensor,
    kept_a: int,
) -> Tensor:
    """Visible tokens [B, Ka + Kv, D], audio first, to all tokens [B, La + Lv, D] in the order of the patches.

    mask_token and modalities are [D], positions [La, D] and [Lv, D], restores int64 [B, La] and [B, Lv] with each
    row a permutation (MaskPlan.restore), kept_a is Ka. The sum is made in float32 and rounded once to visible's
    dtype. Gradients for all but the restores, in a fixed order of addition. Raises ValueError for what does not fit.
    """
    require("visible", visible, ("B", "K", "D"), REFERENCE_FLOATS)
    clips, tokens, width = visible.shape
    require("restore_a", restore_a, (clips, "La"), (torch.int64,))
    require("restore_v", restore_v, (clips, "Lv"), (torch.int64,))
    patches_a, patches_v = restore_a.shape[1], restore_v.shape[1]
    for name, row in ("mask_token", mask_token), ("modality_a", modality_a), ("modality_v", modality_v):
        require(name, row, (width,), REFERENCE_FLOATS)
    require("positions_a", positions_a, (patches_a, width), REFERENCE_FLOATS)
    require("positions_v", positions_v, (patches_v, width), REFERENCE_FLOATS)
    if not (0 <= kept_a <= min(tokens, patches_a) and tokens - kept_a <= patches_v):
        raise ValueError(
            f"kept_a must split the {tokens} visible tokens into at most {patches_a} of audio "
            f"and {patches_v} of image, got {kept_a}"
        )
    tensors = visible, mask_token, positions_a, positions_v, modality_a, modality_v, restore_a, restore_v
    fused = can_launch(*tensors) and all(x.dtype in FLOATS for x in tensors[:6])
    return (_fused if fused else unshuffle_reference)(*tensors, kept_a)

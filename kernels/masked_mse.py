"""Mean squared error of the hidden patches' reconstruction, compared with the raw input itself.

B clips, H hidden patches per clip, P = patch * patch * C values per patch. The target never exists in memory: the
input's hidden patches are read once, normalised in registers, and the prediction's gradient leaves in that pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cavmae_ds.kernels.checks import FLOATS, REFERENCE_FLOATS, require
from cavmae_ds.kernels.launching import can_launch, launch

VALUES_PER_PROGRAM = 1024
SCALE_BLOCK = 2048
EPSILON = tl.constexpr(1e-6)


def masked_mse_reference(
    prediction: Tensor,
    pictures: Tensor,
    hidden: Tensor,
    grid: tuple[int, int, int, int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    normalise: bool,
) -> Tensor:
    """The door's meaning in plain torch, in float32 or wider; see masked_mse."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    rows, columns, patch, channels = grid
    planes = pictures.transpose(1, 2).unsqueeze(1) if pictures.ndim == 3 else pictures  # [B, C, height, width]
    raw = planes.to(wide) / 255 if pictures.dtype == torch.uint8 else planes.to(wide)
    average, deviation = (
        torch.tensor(_per_channel(x, channels), dtype=wide, device=raw.device).view(-1, 1, 1) for x in (mean, std)
    )
    cut = ((raw - average) / deviation).reshape(len(raw), channels, rows, patch, columns, patch)
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(raw), rows * columns, -1)  # [B, L, P], channel fastest
    target = patches.gather(1, hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))  # [B, H, P]
    if normalise:
        variance, middle = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased, [B, H, 1]
        target = (target - middle) / (variance + EPSILON.value).sqrt()
    return (prediction.to(wide) - target).square().mean()


@triton.jit
def _masked_mse_kernel(
    prediction,
    pictures,
    hidden,
    per_patch,  # [B * H] float32: mean squared error of each patch
    error,  # [B, H, P] in the prediction's dtype: prediction - target
    rows,  # B * H
    per_clip,  # H
    hidden_stride,
    clip_stride,
    channel_stride,
    line_stride,  # of the slower of the picture's two axes in memory
    grid_columns,
    scale,  # of the raw values: 1/255 for bytes
    mean0,
    mean1,
    mean2,
    inverse_std0,
    inverse_std1,
    inverse_std2,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # the picture's columns, not its rows, are lines in memory: log-mels
    NORMALISE: tl.constexpr,
    WITH_ERROR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    values: tl.constexpr = PATCH * PATCH * CHANNELS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # one row is one hidden patch
    alive = row < rows
    clip, place = row // per_clip, row % per_clip
    patch = tl.load(hidden + clip * hidden_stride + place, alive, 0)
    down, right = patch // grid_columns, patch % grid_columns
    first_line, first_along = (right, down) if TRANSPOSED else (down, right)
    corner = clip * clip_stride + first_line * PATCH * line_stride + first_along * PATCH

    # Read in the order of memory (channel, line, along), so that loads are wide ...
    m = tl.arange(0, BLOCK)
    live = alive[:, None] & (m < values)[None, :]
    channel = m // (PATCH * PATCH)
    offset = channel * channel_stride + m // PATCH % PATCH * line_stride + m % PATCH  # within a picture: 32 bits do
    raw = tl.load(pictures + corner[:, None] + offset[None, :], live, 0).to(tl.float32)
    mean = tl.where(channel == 0, mean0, tl.where(channel == 1, mean1, mean2))
    inverse_std = tl.where(channel == 0, inverse_std0, tl.where(channel == 1, inverse_std1, inverse_std2))
    target = (raw * scale - mean[None, :]) * inverse_std[None, :]
    if NORMALISE:
        target -= (tl.sum(tl.where(live, target, 0.0), 1) / values)[:, None]
        variance = tl.sum(tl.where(live, target * target, 0.0), 1) / (values - 1)
        target *= (1.0 / tl.sqrt(variance + EPSILON))[:, None]

    # ... and turn to the order of a patch (row p, column q, channel fastest) within the program.
    q, p = m // CHANNELS % PATCH, m // (CHANNELS * PATCH)
    line, along = (q, p) if TRANSPOSED else (p, q)
    source = tl.where(m < values, (m % CHANNELS * PATCH + line) * PATCH + along, 0)
    if PATCH > 1:
        target = tl.gather(target, tl.broadcast_to(source[None, :], (ROWS, BLOCK)), 1)
    at = row[:, None] * values + m[None, :]
    difference = tl.where(live, tl.load(prediction + at, live, 0).to(tl.float32) - target, 0.0)
    tl.store(per_patch + row, tl.sum(difference * difference, 1) / values, alive)
    if WITH_ERROR:
        tl.store(error + at, difference.to(error.dtype.element_ty), live)


@triton.jit
def _scale_kernel(error, arriving, gradient, count, factor, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < count
    scaled = tl.load(error + place, live, 0).to(tl.float32) * (tl.load(arriving).to(tl.float32) * factor)
    tl.store(gradient + place, scaled.to(gradient.dtype.element_ty), live)


class _MaskedMSE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        pictures: Tensor,
        hidden: Tensor,
        grid: tuple[int, int, int, int],
        mean: list[float],
        std: list[float],
        normalise: bool,
    ) -> Tensor:
        clips, per_clip, values = prediction.shape
        _, columns, patch, channels = grid
        with_error = prediction.requires_grad
        per_patch = torch.empty(clips * per_clip, dtype=torch.float32, device=prediction.device)
        # The error itself, not the gradient: 2 / (B H P) would drop below the smallest float16.
        error = torch.empty_like(prediction) if with_error else prediction
        block = triton.next_power_of_2(values)
        rows_per_program = max(1, VALUES_PER_PROGRAM // block)
        per_thread = 16 if pictures.dtype == torch.uint8 else 8  # 16 bytes of whichever is narrower
        transposed = pictures.ndim == 3
        means, inverse_stds = ([*x, 0.0, 0.0][:3] for x in (mean, [1 / s for s in std]))
        launch(
            _masked_mse_kernel,
            (triton.cdiv(clips * per_clip, rows_per_program),),
            prediction,
            pictures,
            hidden,
            per_patch,
            error,
            clips * per_clip,
            per_clip,
            hidden.stride(0),
            pictures[0].numel(),
            0 if transposed else pictures[0, 0].numel(),
            pictures.shape[-1],
            columns,
            1 / 255 if pictures.dtype == torch.uint8 else 1.0,
            *means,
            *inverse_stds,
            num_warps=max(1, rows_per_program * block // (32 * per_thread)),
            PATCH=patch,
            CHANNELS=channels,
            TRANSPOSED=transposed,
            NORMALISE=normalise,
            WITH_ERROR=with_error,
            ROWS=rows_per_program,
            BLOCK=block,
        )
        if with_error:
            ctx.save_for_backward(error)
        return per_patch.mean()  # a fixed tree of sums: the same bits every time

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        gradient = torch.empty_like(error)
        count = error.numel()
        grid = (triton.cdiv(count, SCALE_BLOCK),)
        launch(_scale_kernel, grid, error, arriving, gradient, count, 2 / count, BLOCK=SCALE_BLOCK)
        return gradient, None, None, None, None, None, None


@torch.compiler.disable  # dynamo loses the gradient of a Function whose outputs are filled in place
def _fused(prediction: Tensor, *rest: Any) -> Tensor:
    return _MaskedMSE.apply(prediction, *rest)


def masked_mse(
    prediction: Tensor,
    pictures: Tensor,
    hidden: Tensor,
    grid: tuple[int, int, int, int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    normalise: bool,
) -> Tensor:
    """Mean over all hidden patches of the batch of each patch's mean squared error: a float32 scalar.

    prediction [B, H, P] belongs to the patches with ids hidden [B, H] int64, values in the order row, column,
    channel. The target is pictures, cut by grid (rows, columns, patch, channels): images [B, C, height, width], or
    log-mels [B, frames, mel bins], whose rows are mel bins. Bytes count as 0 ... 1; then (x - mean) / std, per
    channel or one for all. With normalise each target patch is brought to mean 0 and variance 1 (unbiased, plus
    1e-6). Ids are taken as they are: reading them back to look would stall. Raises ValueError for a wrong dtype,
    shape or layout.
    """
    _check(prediction, pictures, hidden, grid)
    means, stds = _per_channel(mean, grid[3]), _per_channel(std, grid[3])
    if can_launch(prediction, pictures, hidden) and prediction.dtype in FLOATS:
        return _fused(prediction, pictures, hidden, grid, means, stds, normalise)
    return masked_mse_reference(prediction, pictures, hidden, grid, means, stds, normalise)


def _per_channel(value: float | Sequence[float], channels: int) -> list[float]:
    values = [float(value)] * channels if isinstance(value, (int, float)) else [float(x) for x in value]
    if len(values) != channels:
        raise ValueError(f"mean and std must be one number or {channels}, one per channel, got {len(values)}")
    return values


def _check(prediction: Tensor, pictures: Tensor, hidden: Tensor, grid: tuple[int, int, int, int]) -> None:
    rows, columns, patch, channels = grid
    height, width, values = rows * patch, columns * patch, patch * patch * channels
    if channels not in (1, 2, 3) or values < 2:
        raise ValueError(
            f"grid must have 1 to 3 channels and patches of 2 values or more (one has no variance), "
            f"got {channels} channels and {values} values"
        )
    require("prediction", prediction, ("B", "H", values), REFERENCE_FLOATS)
    clips, per_clip, _ = prediction.shape
    if 0 in (clips, per_clip):
        raise ValueError(f"prediction must hold a hidden patch, got {list(prediction.shape)}")
    log_mel = channels == 1 and pictures.ndim == 3
    shape = (clips, width, height) if log_mel else (clips, channels, height, width)
    require("pictures", pictures, shape, (torch.uint8, *REFERENCE_FLOATS))
    if pictures.requires_grad:
        raise ValueError("pictures are data and get no gradient, but they require one")
    if hidden.dtype != torch.int64 or hidden.shape != (clips, per_clip) or hidden.stride(1) != 1:
        raise ValueError(
            f"hidden must be int64 [{clips}, {per_clip}] with contiguous rows, "
            f"got {hidden.dtype} {list(hidden.shape)} with strides {hidden.stride()}"
        )
    if not prediction.device == pictures.device == hidden.device:
        raise ValueError(f"all must lie on one device, got {prediction.device}, {pictures.device}, {hidden.device}")

"""The way in: visible patches, and nothing else, read from the raw input and normalised.

B clips, K kept of L patches, P values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cavmae_ds.kernels.checks import REFERENCE_FLOATS, require
from cavmae_ds.kernels.launching import can_launch, launch

MOST_CHANNELS = 3
ELEMENTS = 4096  # of a tile: 32 a thread, enough for 16-byte loads of uint8
ODD_ELEMENTS = 1024  # of patches whose rows do not fit such loads: every element needs an address of its own


def patch_gather_reference(
    pictures: Tensor,
    keep: Tensor,
    grid: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    out_dtype: torch.dtype,
) -> Tensor:
    """What patch_gather means, in plain torch."""
    rows, columns, patch, channels = grid
    if pictures.dim() == 3:  # log-mel: mel becomes the row axis, time the column axis
        pictures = pictures.transpose(1, 2).unsqueeze(1)
    wide = torch.float64 if torch.float64 in (pictures.dtype, out_dtype) else torch.float32
    values = pictures.to(wide) / (255 if pictures.dtype == torch.uint8 else 1)
    mean_, std_ = (torch.tensor(x, dtype=wide, device=pictures.device).view(-1, 1, 1) for x in (mean, std))
    cut = ((values - mean_) / std_).reshape(-1, channels, rows, patch, columns, patch)  # [B, C, R, p, S, q]
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(pictures.shape[0], rows * columns, -1)  # [B, L, P]
    return patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1])).to(out_dtype)


@triton.jit
def _gather_kernel(
    pictures,
    keep,
    out,
    count,
    kept,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOG_MEL: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """One program: PATCHES kept patches. Read in the order of memory, turned on the way, written in that of a patch.

    A tile row holds [channel, outer, inner] with inner contiguous in memory: q of an image, p (mel) of a log-mel.
    """
    item = tl.program_id(0).to(tl.int64) * PATCHES + tl.arange(0, PATCHES)  # of all B K
    live = item < count
    patch = tl.load(keep + item, live, 0)
    row, column = patch // COLUMNS, patch % COLUMNS

    place = tl.arange(0, TILE)
    inner, outer, channel = place % SIDE, place // SIDE % SIDE, place // (SIDE * SIDE)
    if LOG_MEL:
        corner = column * (PATCH * ROWS * PATCH) + row * PATCH  # frames are rows of memory
        within = outer * (ROWS * PATCH) + inner
    else:
        corner = row * (PATCH * COLUMNS * PATCH) + column * PATCH
        within = channel * (ROWS * PATCH * COLUMNS * PATCH) + outer * (COLUMNS * PATCH) + inner
    PICTURE: tl.constexpr = CHANNELS * ROWS * PATCH * COLUMNS * PATCH
    at = (item // kept * PICTURE + corner)[:, None] + within[None, :]
    inside = (channel < CHANNELS) & (outer < PATCH) & (inner < PATCH)
    x = tl.load(pictures + at, live[:, None] & inside[None, :], 0).to(tl.float32)
    scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    x = x * scale[None, :] + shift[None, :]

    # Turned by a permutation of powers of two: through shared memory, where tl.gather would shuffle element-wise.
    x = tl.reshape(x, (PATCHES, DEPTH, SIDE, SIDE))
    x = tl.permute(x, (0, 3, 2, 1)) if LOG_MEL else tl.permute(x, (0, 2, 3, 1))  # [PATCHES, p, q, channel]
    x = tl.reshape(x, (PATCHES, TILE))
    c, q, p = place % DEPTH, place // DEPTH % SIDE, place // (DEPTH * SIDE)
    to = item[:, None] * (PATCH * PATCH * CHANNELS) + ((p * PATCH + q) * CHANNELS + c)[None, :]
    inside = (c < CHANNELS) & (q < PATCH) & (p < PATCH)
    tl.store(out + to, x.to(out.dtype.element_ty), live[:, None] & inside[None, :])


@torch.compiler.disable
def _gather(
    pictures: Tensor,
    keep: Tensor,
    grid: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    out_dtype: torch.dtype,
) -> Tensor:
    rows, columns, patch, channels = grid
    clips, kept = keep.shape
    out = torch.empty(clips, kept, patch * patch * channels, dtype=out_dtype, device=pictures.device)
    unit = 255.0 if pictures.dtype == torch.uint8 else 1.0
    scale = [1 / (unit * s) for s in std]  # (x / unit - mean) / std = x scale + shift
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    spare = [0.0] * (MOST_CHANNELS - channels)
    side, depth = triton.next_power_of_2(patch), triton.next_power_of_2(channels)
    tile = depth * side * side
    patches = max(1, (ELEMENTS if patch == side >= 16 else ODD_ELEMENTS) // tile)
    launch(
        _gather_kernel,
        (triton.cdiv(clips * kept, patches),),
        pictures,
        keep,
        out,
        clips * kept,
        kept,
        *scale,
        *spare,
        *shift,
        *spare,
        ROWS=rows,
        COLUMNS=columns,
        PATCH=patch,
        CHANNELS=channels,
        LOG_MEL=pictures.dim() == 3,
        SIDE=side,
        DEPTH=depth,
        TILE=tile,
        PATCHES=patches,
    )
    return out


def patch_gather(
    pictures: Tensor,
    keep: Tensor,
    grid: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    out_dtype: torch.dtype,
) -> Tensor:
    """The kept patches of raw pictures, normalised: [B, K, P] of out_dtype, nothing else read.

    pictures is [B, C, H, W] uint8 (0 ... 255 becomes 0 ... 1) or float, or a log-mel [B, frames, mel bins] whose
    rows are mel bins and columns frames; keep is int64 [B, K] of patch ids; grid is rows, columns, patch, channels;
    then (x - mean) / std per channel. Value (p patch + q) C + c of a patch is its row p, column q, channel c.
    No gradient goes to the pictures. Raises ValueError for what does not fit.
    """
    rows, columns, patch, channels = grid
    if not (min(grid) > 0 and channels <= MOST_CHANNELS and len(mean) == len(std) == channels):
        raise ValueError(
            f"the grid must have 1 to {MOST_CHANNELS} channels, each with a mean and a std, "
            f"got {tuple(grid)} with {len(mean)} means and {len(std)} stds"
        )
    if pictures.dim() == 3:
        if channels != 1:
            raise ValueError(f"a log-mel has 1 channel, got a grid with {channels}")
        require("pictures", pictures, ("B", columns * patch, rows * patch), REFERENCE_FLOATS)
    else:
        dtypes = (torch.uint8, *REFERENCE_FLOATS)
        require("pictures", pictures, ("B", channels, rows * patch, columns * patch), dtypes)
    if pictures.requires_grad:
        raise ValueError("pictures must not require grad: patch_gather has no gradient for them, they are data")
    require("keep", keep, (pictures.shape[0], "K"), (torch.int64,))
    if out_dtype not in REFERENCE_FLOATS:
        raise ValueError(f"out_dtype must be one of {REFERENCE_FLOATS}, got {out_dtype}")
    fused = can_launch(pictures, keep) and torch.float64 not in (pictures.dtype, out_dtype)
    return (_gather if fused else patch_gather_reference)(pictures, keep, grid, mean, std, out_dtype)

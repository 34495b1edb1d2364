"""Random masks from the clip's own numbers: B clips, L patches on a grid of rows x columns, K kept ones.

Patches are ranked by a uniform draw (per_sample_rng's Philox counters), equal draws by patch: the first K are kept,
in that order. Chosen rows and columns of the grid have their patches' draws lifted by 1, so they are hidden first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cavmae_ds.distributed.per_sample_rng import Stream, clip_counters, require_ranges
from cavmae_ds.kernels.checks import require
from cavmae_ds.kernels.launching import can_launch, launch
from cavmae_ds.kernels.philox import uniform_reference

MOST_PATCHES = 1 << 16  # a clip's draws are counted with 16 bits
BLOCK = 512  # patches per program: one clip's sound in CAV-MAE base, or two clips' images
CHUNK = 16  # patches each is compared with at a time

Plan = tuple[Tensor, Tensor, Tensor]
"""keep [B, K], hidden [B, L - K], restore [B, L]: int64."""


def rank_by_noise(noise: Tensor, kept: int) -> Plan:
    """Keep the `kept` patches with the smallest noise [B, L], in that order; equal noise goes by patch id."""
    shuffle = noise.argsort(dim=1, stable=True)  # stable: the same plan on every device
    return shuffle[:, :kept].contiguous(), shuffle[:, kept:].contiguous(), shuffle.argsort(dim=1)


def structured(noise: Tensor, columns: Tensor, rows: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Lift the noise [B, L] of whole columns [B, C] and rows [B, R] above every other draw, so they go first.

    The share hidden stays that of the ratio, so structure is a preference: patches beyond it are hidden at
    random, and where it asks for too many, random ones of the chosen are kept.
    """
    clips = len(noise)
    in_column = noise.new_zeros(clips, grid[1]).scatter(1, columns, 1.0)
    in_row = noise.new_zeros(clips, grid[0]).scatter(1, rows, 1.0)
    chosen = torch.maximum(in_row[:, :, None], in_column[:, None, :])  # [B, rows, columns]
    return noise + chosen.flatten(1)  # noise lies in [0, 1): adding 1 lifts it and keeps its order


def random_mask_reference(
    seed: int,
    epoch: int | Tensor,
    clip_index: Tensor,
    grid: tuple[int, ...],
    kept: int,
    *,
    stream: Stream,
    columns: int = 0,
    rows: int = 0,
) -> Plan:
    """What random_mask means, in plain torch."""

    def draw(stream: Stream, count: int) -> Tensor:
        return uniform_reference(*clip_counters(seed, epoch, clip_index, stream, count))

    noise = draw(stream, grid[0] * grid[1])  # [B, L]
    if columns or rows:
        chosen_columns = draw(Stream.AUDIO_COLUMNS, grid[1]).argsort(stable=True)[:, :columns]
        chosen_rows = draw(Stream.AUDIO_ROWS, grid[0]).argsort(stable=True)[:, :rows]
        noise = structured(noise, chosen_columns, chosen_rows, grid)
    return rank_by_noise(noise, kept)


@triton.jit
def _draw(key, clip, element, STREAM: tl.constexpr):
    """per_sample_rng's draw in [0, 1) for int64 elements of a clip."""
    return tl.rand(key, (clip << 24) | (STREAM << 16) | element)


@triton.jit
def _order(draw, element):
    """An int64 that sorts by draw, then by element: the bits of floats that are not negative sort as they do."""
    return (draw.to(tl.int32, bitcast=True).to(tl.int64) << 32) | element


@triton.jit
def _first_lines(key, clip, STREAM: tl.constexpr, LINES: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """Of each line (column or row of the grid), whether it is among the COUNT with the smallest draws."""
    line = tl.arange(0, triton.next_power_of_2(LINES)).to(tl.int64)[None, :]
    own = _order(_draw(key, clip, line, STREAM), line)  # [CLIPS, lines]
    rank = tl.zeros(own.shape, tl.int32)
    for start in range(0, LINES, CHUNK):
        other = (start + tl.arange(0, CHUNK).to(tl.int64))[None, :]
        order = _order(_draw(key, clip, other, STREAM), other)  # [CLIPS, CHUNK]
        smaller = (order[:, None, :] < own[:, :, None]) & (other < LINES)[:, None, :]
        rank += tl.sum(smaller.to(tl.int32), 2)
    return (rank < COUNT).to(tl.int32)


@triton.jit
def _look_up(table, line, SHAPE: tl.constexpr):
    """table [CLIPS, lines] at line [1, N]: [CLIPS, N]. Flat, for Triton 3.6 fails to compile gathers of 2-d tiles."""
    LINES: tl.constexpr = table.shape[1]
    at = tl.arange(0, SHAPE[0])[:, None] * LINES + line.to(tl.int32)
    flat = tl.gather(tl.reshape(table, (SHAPE[0] * LINES,)), tl.reshape(at, (SHAPE[0] * SHAPE[1],)), 0)
    return tl.reshape(flat, SHAPE)


@triton.jit
def _lifted_order(
    key,
    clip,
    patch,
    first_columns,
    first_rows,
    STREAM: tl.constexpr,
    GRID_ROWS: tl.constexpr,
    GRID_COLUMNS: tl.constexpr,
    STRUCTURED: tl.constexpr,
):
    """Sort keys of patches, those in chosen lines lifted."""
    noise = _draw(key, clip, patch, STREAM)
    if STRUCTURED:
        column, row = patch % GRID_COLUMNS, tl.minimum(patch // GRID_COLUMNS, GRID_ROWS - 1)
        in_column, in_row = _look_up(first_columns, column, noise.shape), _look_up(first_rows, row, noise.shape)
        # noise + 1, times 2^23. The scale makes the product exact: a compiler that fuses the generator's own
        # multiplication with a bare "+ 1" would round once instead of twice and order close draws otherwise.
        noise = tl.where(in_column + in_row > 0, noise * 8388608.0 + 8388608.0, noise)
    return _order(noise, patch)


@triton.jit(do_not_specialize=["seed", "epoch"])
def _mask_kernel(
    clip_index,
    epochs,
    keep,
    hidden,
    restore,
    clips,
    seed,
    epoch,
    KEPT: tl.constexpr,
    EPOCH_PER_CLIP: tl.constexpr,
    STREAM: tl.constexpr,
    COLUMN_STREAM: tl.constexpr,
    ROW_STREAM: tl.constexpr,
    GRID_ROWS: tl.constexpr,
    GRID_COLUMNS: tl.constexpr,
    CHOSEN_COLUMNS: tl.constexpr,
    CHOSEN_ROWS: tl.constexpr,
    CLIPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: the places of BLOCK patches of CLIPS clips, each by counting the patches before it."""
    LENGTH: tl.constexpr = GRID_ROWS * GRID_COLUMNS
    batch_row = tl.program_id(0).to(tl.int64) * CLIPS + tl.arange(0, CLIPS)[:, None]
    present = batch_row < clips
    clip = tl.load(clip_index + batch_row, present, 0)  # [CLIPS, 1]
    epoch = tl.load(epochs + batch_row, present, 0) if EPOCH_PER_CLIP else clip * 0 + epoch
    key = (epoch << 32) | seed
    patch = (tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    STRUCTURED: tl.constexpr = CHOSEN_COLUMNS + CHOSEN_ROWS > 0
    first_columns, first_rows = patch, patch  # not read without structure
    if STRUCTURED:
        first_columns = _first_lines(key, clip, COLUMN_STREAM, GRID_COLUMNS, CHOSEN_COLUMNS, CHUNK)
        first_rows = _first_lines(key, clip, ROW_STREAM, GRID_ROWS, CHOSEN_ROWS, CHUNK)
    own = _lifted_order(key, clip, patch, first_columns, first_rows, STREAM, GRID_ROWS, GRID_COLUMNS, STRUCTURED)
    place = tl.zeros((CLIPS, BLOCK), tl.int32)
    for start in range(0, LENGTH, CHUNK):
        other = (start + tl.arange(0, CHUNK).to(tl.int64))[None, :]
        order = _lifted_order(key, clip, other, first_columns, first_rows, STREAM, GRID_ROWS, GRID_COLUMNS, STRUCTURED)
        before = (order[:, None, :] < own[:, :, None]) & (other < LENGTH)[:, None, :]  # [CLIPS, BLOCK, CHUNK]
        place += tl.sum(before.to(tl.int32), 2)
    live = present & (patch < LENGTH)
    patch = tl.broadcast_to(patch, (CLIPS, BLOCK))
    place = place.to(tl.int64)
    tl.store(restore + batch_row * LENGTH + patch, place, live)
    tl.store(keep + batch_row * KEPT + place, patch, live & (place < KEPT))
    tl.store(hidden + batch_row * (LENGTH - KEPT) + place - KEPT, patch, live & (place >= KEPT))


@torch.compiler.disable
def _random_mask(
    seed: int,
    epoch: int | Tensor,
    clip_index: Tensor,
    grid: tuple[int, ...],
    kept: int,
    stream: Stream,
    columns: int,
    rows: int,
) -> Plan:
    clips, patches = len(clip_index), grid[0] * grid[1]
    keep = clip_index.new_empty(clips, kept)
    hidden = clip_index.new_empty(clips, patches - kept)
    restore = clip_index.new_empty(clips, patches)
    per_clip = isinstance(epoch, Tensor)
    block = min(BLOCK, triton.next_power_of_2(patches))
    together = BLOCK // block
    launch(
        _mask_kernel,
        (triton.cdiv(clips, together), triton.cdiv(patches, block)),
        clip_index,
        epoch if per_clip else clip_index,  # not read without EPOCH_PER_CLIP
        keep,
        hidden,
        restore,
        clips,
        seed,
        0 if per_clip else epoch,
        KEPT=kept,
        EPOCH_PER_CLIP=per_clip,
        STREAM=int(stream),
        COLUMN_STREAM=int(Stream.AUDIO_COLUMNS),
        ROW_STREAM=int(Stream.AUDIO_ROWS),
        GRID_ROWS=grid[0],
        GRID_COLUMNS=grid[1],
        CHOSEN_COLUMNS=columns,
        CHOSEN_ROWS=rows,
        CLIPS=together,
        BLOCK=block,
        CHUNK=min(CHUNK, block),
        num_warps=8,
    )
    return keep, hidden, restore


def random_mask(
    seed: int,
    epoch: int | Tensor,
    clip_index: Tensor,
    grid: tuple[int, ...],
    kept: int,
    *,
    stream: Stream,
    columns: int = 0,
    rows: int = 0,
) -> Plan:
    """keep [B, K], hidden [B, L - K] and restore [B, L], int64, of the clips with these indices [B] int64.

    A pure function of seed, epoch (one number, or int64 [B]) and clip, bit-equal on every device. grid starts
    with its rows and columns; `columns` and `rows` of them, chosen at random, are hidden first. One launch, no
    noise in memory, nothing read back. Raises ValueError for numbers or shapes that do not fit.
    """
    patches = grid[0] * grid[1]
    if not 0 < patches <= MOST_PATCHES:
        raise ValueError(f"the grid must have 1 to {MOST_PATCHES} patches, got {grid[0]} x {grid[1]}")
    if not 0 <= kept <= patches:
        raise ValueError(f"kept must lie in 0 ... {patches}, the patches of the grid, got {kept}")
    if not (0 <= columns <= grid[1] and 0 <= rows <= grid[0]):
        raise ValueError(
            f"columns and rows to hide must lie in 0 ... {grid[1]} and 0 ... {grid[0]}, got {columns}, {rows}"
        )
    require("clip_index", clip_index, ("B",), (torch.int64,))
    tensors = [clip_index]
    if isinstance(epoch, Tensor):
        require("epoch", epoch, (len(clip_index),), (torch.int64,))
        tensors.append(epoch)
    require_ranges(seed, epoch, clip_index)
    if can_launch(*tensors):
        return _random_mask(seed, epoch, clip_index, grid, kept, stream, columns, rows)
    return random_mask_reference(seed, epoch, clip_index, grid, kept, stream=stream, columns=columns, rows=rows)

"""One tile of contrastive logits at a time: into running log-sum-exps (forward), into its gradient (backward).

b queries are the rows, N candidates the columns of the logits. Programs of a kernel own blocks of a tile. Each block
position has its own slot of running statistics, for rows and for columns, merged at the end: one read of the tile
serves both, without atomics, the same bits every time. Where kernels do not run, plain torch does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cavmae_ds.kernels.checks import FLOATS
from cavmae_ds.kernels.launching import can_launch, launch

TILE_ROWS, TILE_COLUMNS = 2048, 4096  # 32 MiB of float32 logits: matmuls fill the GPU, L2 keeps much of the tile
BLOCK_ROWS, BLOCK_COLUMNS = 32, 128  # twice the rows would spill where ragged tiles load element by element
GRADIENT_UNIT = 4096.0  # exact in every dtype; lifts the softmax of many candidates above float16's smallest


class Tile(NamedTuple):
    """Rows and columns of the logits, and the local column of the first local row's partner (may be outside)."""

    rows: slice
    columns: slice
    diagonal: int


def fusable(*rows: Tensor) -> bool:
    """Whether the kernels take these."""
    return can_launch(*rows) and rows[0].dtype in FLOATS


def fits_one_tile(rows: int, columns: int) -> bool:
    """Whether all logits together are no more than one tile."""
    return rows * columns <= TILE_ROWS * TILE_COLUMNS


def tiles(rows: int, columns: int, first_row: int) -> Iterator[Tile]:
    """The tiles of logits [rows, columns]; row i's partner is column first_row + i."""
    for top in range(0, rows, TILE_ROWS):
        for left in range(0, columns, TILE_COLUMNS):
            across, down = slice(left, min(left + TILE_COLUMNS, columns)), slice(top, min(top + TILE_ROWS, rows))
            yield Tile(down, across, first_row + top - left)


class Running(NamedTuple):
    """Running statistics along one axis of the products, S slots for n rows or columns; float32 or wider."""

    high: Tensor
    """[S, n] largest product so far."""
    total: Tensor
    """[S, n] sum of exp((product - largest) / temperature)."""
    best: Tensor
    """[S, n] int64 place, along the other axis, of the (first) largest product."""

    def part(self, along: slice) -> Running:
        """That of some rows or columns."""
        return Running(*(x[:, along] for x in self))


class Statistics(NamedTuple):
    """Running statistics of the products of b queries (rows) with candidates (columns).

    A logit is product / temperature. Products are subtracted before they are divided: no logit is ever rounded.
    """

    rows: Running
    columns: Running | None
    """When both directions are asked for."""
    positive: Tensor
    """[b] product with the partner."""


def fresh_statistics(queries: Tensor, candidates: Tensor, positive: Tensor, both: bool, fused: bool) -> Statistics:
    """Statistics of nothing yet; the kernels need a slot for each of their blocks' positions.

    positive [b] is filled in where a query's partner is among the candidates.
    """
    rows, columns = len(queries), len(candidates)
    row_slots = triton.cdiv(min(columns, TILE_COLUMNS), BLOCK_COLUMNS) if fused else 1
    column_slots = triton.cdiv(min(rows, TILE_ROWS), BLOCK_ROWS) if fused else 1

    def running(slots: int, count: int) -> Running:
        total = torch.zeros(slots, count, dtype=positive.dtype, device=queries.device)
        return Running(torch.full_like(total, -torch.inf), total, torch.zeros_like(total, dtype=torch.int64))

    return Statistics(running(row_slots, rows), running(column_slots, columns) if both else None, positive)


@triton.jit(do_not_specialize=["diagonal", "first_row", "first_column"])
def _statistics_kernel(
    products,  # [rows, columns] float32 of this tile
    row_high,  # [S, b], this tile's part, like all that follow
    row_total,
    row_best,
    column_high,  # [S, N]
    column_total,
    column_best,
    positive,  # [b]
    rows,
    columns,
    row_stride,  # of the slots: b
    column_stride,  # of the slots: N
    diagonal,
    first_row,
    first_column,
    inverse_temperature,
    BOTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row_slot, column_slot = tl.program_id(1), tl.program_id(0)
    row = column_slot * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # 32 bits do: a tile has TILE_ROWS * TILE_COLUMNS places
    column = row_slot * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_alive, column_alive = row < rows, column < columns
    alive = row_alive[:, None] & column_alive[None, :]
    x = tl.load(products + row[:, None] * columns + column[None, :], alive, 0.0)

    masked = tl.where(column_alive[None, :], x, -float("inf"))
    block_high, place = tl.max(masked, 1, return_indices=True)  # the first of equals
    at = row_slot.to(tl.int64) * row_stride + row
    before = tl.load(row_high + at, row_alive, 0.0)
    high = tl.maximum(before, block_high)
    total = tl.load(row_total + at, row_alive, 0.0) * tl.exp((before - high) * inverse_temperature)
    total += tl.sum(tl.exp((masked - high[:, None]) * inverse_temperature), 1)
    best = first_column + row_slot * BLOCK_COLUMNS + place
    tl.store(row_best + at, best, row_alive & (block_high > before))
    tl.store(row_high + at, high, row_alive)
    tl.store(row_total + at, total, row_alive)

    partner = row + diagonal
    partner_here = (partner[:, None] == column[None, :]) & alive
    found = tl.sum(tl.where(partner_here, x, 0.0), 1)
    here = (partner >= row_slot * BLOCK_COLUMNS) & (partner < (row_slot + 1) * BLOCK_COLUMNS) & (partner < columns)
    tl.store(positive + row, found, row_alive & here)

    if BOTH:
        masked = tl.where(row_alive[:, None], x, -float("inf"))
        at = column_slot.to(tl.int64) * column_stride + column
        before = tl.load(column_high + at, column_alive, 0.0)
        block_high, place = tl.max(masked, 0, return_indices=True)  # the first of equals
        high = tl.maximum(before, block_high)
        total = tl.load(column_total + at, column_alive, 0.0) * tl.exp((before - high) * inverse_temperature)
        total += tl.sum(tl.exp((masked - high[None, :]) * inverse_temperature), 0)
        best = first_row + column_slot * BLOCK_ROWS + place
        tl.store(column_best + at, best, column_alive & (block_high > before))
        tl.store(column_high + at, high, column_alive)
        tl.store(column_total + at, total, column_alive)


@triton.jit(do_not_specialize=["diagonal"])
def _gradient_kernel(
    products,  # [rows, columns] float32
    gradient,  # [rows, columns] in the operands' dtype; may be products itself
    row_sums,  # [2, b] largest product and sum, this tile's part
    column_sums,  # [2, N], this tile's part
    rows,
    columns,
    row_stride,  # b
    column_stride,  # N
    diagonal,
    inverse_temperature,
    unit,
    BOTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # 32 bits do: places of one tile
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    alive = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    x = tl.load(products + at, alive, 0.0)
    high = tl.load(row_sums + row, row < rows, 0.0)
    total = tl.load(row_sums + row_stride + row, row < rows, 1.0)
    slope = tl.exp((x - high[:, None]) * inverse_temperature) * (1.0 / total)[:, None]
    hit = tl.where(row[:, None] + diagonal == column[None, :], 1.0, 0.0)
    if BOTH:
        high = tl.load(column_sums + column, column < columns, 0.0)
        total = tl.load(column_sums + column_stride + column, column < columns, 1.0)
        slope += tl.exp((x - high[None, :]) * inverse_temperature) * (1.0 / total)[None, :]
        hit *= 2.0
    tl.store(gradient + at, tl.where(alive, (slope - hit) * unit, 0.0).to(gradient.dtype.element_ty), alive)


def fold(products: Tensor, tile: Tile, statistics: Statistics, temperature: float, fused: bool) -> None:
    """Let a tile's products [rows, columns] into the statistics."""
    rows, columns = products.shape
    of_rows, positive = statistics.rows.part(tile.rows), statistics.positive[tile.rows]
    of_columns = None if statistics.columns is None else statistics.columns.part(tile.columns)
    if fused:
        others = of_columns or of_rows  # not touched unless BOTH
        strides = of_rows.high.stride(0), others.high.stride(0)
        launch(
            _statistics_kernel,
            (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)),
            *(products, *of_rows, *others, positive, rows, columns, *strides, tile.diagonal),
            *(tile.rows.start, tile.columns.start, 1 / temperature),
            num_warps=8,
            BOTH=of_columns is not None,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
        )
        return
    partner = torch.arange(rows, device=products.device) + tile.diagonal
    here = (partner >= 0) & (partner < columns)
    found = products.gather(1, partner.clamp(0, columns - 1).unsqueeze(1)).squeeze(1)
    positive.copy_(torch.where(here, found, positive))
    for along, running, start in ((1, of_rows, tile.columns.start), (0, of_columns, tile.rows.start)):
        if running is None:
            continue
        before, total, best = (x[0] for x in running)
        high, place = products.max(along)  # the first of equals
        best.copy_(torch.where(high > before, start + place, best))
        new = torch.maximum(before, high)
        total.mul_((before - new).div_(temperature).exp_())
        total.add_((products - new.unsqueeze(along)).div_(temperature).exp_().sum(along))
        before.copy_(new)


def logit_gradient(
    products: Tensor, tile: Tile, row_sums: Tensor, column_sums: Tensor | None, temperature: float, dtype: torch.dtype
) -> Tensor:
    """A tile's products to the gradient of row losses (and column losses), times GRADIENT_UNIT, for the next matmul."""
    rows, columns = products.shape
    row_part = row_sums[:, tile.rows]
    column_part = row_part if column_sums is None else column_sums[:, tile.columns]
    if fusable(products):
        gradient = products if dtype == products.dtype else torch.empty_like(products, dtype=dtype)
        launch(
            _gradient_kernel,
            (triton.cdiv(rows, 16), triton.cdiv(columns, 256)),
            *(products, gradient, row_part, column_part, rows, columns, row_part.stride(0), column_part.stride(0)),
            *(tile.diagonal, 1 / temperature, GRADIENT_UNIT),
            num_warps=4,
            BOTH=column_sums is not None,
            BLOCK_ROWS=16,
            BLOCK_COLUMNS=256,
        )
        return gradient
    slope = (products - row_part[0].unsqueeze(1)).div_(temperature).exp_().div_(row_part[1].unsqueeze(1))
    if column_sums is not None:
        slope += products.sub_(column_part[0]).div_(temperature).exp_().div_(column_part[1])
    row = torch.arange(rows, device=slope.device)
    partner = row + tile.diagonal
    here = ((partner >= 0) & (partner < columns)).to(slope.dtype) * (1 if column_sums is None else 2)
    slope[row, partner.clamp(0, columns - 1)] -= here
    return slope.mul_(GRADIENT_UNIT).to(dtype)


def merge(high: Tensor, total: Tensor, temperature: float) -> Tensor:
    """Slots [S, n] of largest product and sum to one of each: [2, n].

    They stay apart, for a log-sum-exp would be rounded to the largest logit's last place.
    """
    top = high.amax(0)
    return torch.stack([top, (total * ((high - top) / temperature).exp()).sum(0)])


def first_of_equals(high: Tensor, best: Tensor) -> Tensor:
    """Slots [S, n] of largest product and its candidate to the candidate of the largest of all: [n]."""
    return torch.where(high == high.amax(0), best, torch.iinfo(best.dtype).max).amin(0)

"""InfoNCE over b queries and N candidates whose logits [b, N] never exist: one tile of them at a time.

D is the width of the rows. A tile's logits come from the library's matmul, one kernel per tile folds them into
running log-sum-exps (forward) or turns them into their gradient (backward, from recomputed logits), and matmuls
carry that to both sides. Both directions share the tiles: 2 + 2 + 2 + 2 = 8 N^2 D FLOPs, forward and backward.
Where the candidates come from is a Side's business: this process, or others, all at once or block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.kernels.checks import REFERENCE_FLOATS, require
from cavmae_ds.kernels.contrastive_tiles import (
    GRADIENT_UNIT,
    first_of_equals,
    fits_one_tile,
    fold,
    fresh_statistics,
    fusable,
    logit_gradient,
    merge,
    tiles,
)


class Contrast(NamedTuple):
    """Scalars of one comparison, float32 or wider."""

    loss: Tensor
    accuracy: Tensor
    """Of both directions the mean, of one direction that one; no gradient, like the next two."""
    forward_accuracy: Tensor
    """Share of queries whose best candidate (the first of equals) is their partner."""
    reverse_accuracy: Tensor
    """Share of candidates whose best query (the first of equals) is their partner; 0 if only queries were scored."""


def mean_of_directions(forward: Contrast, reverse: Contrast) -> Contrast:
    """Two one-directional results as one of both directions."""
    loss, accuracy = (forward.loss + reverse.loss) / 2, (forward.accuracy + reverse.accuracy) / 2
    return Contrast(loss, accuracy, forward.accuracy, reverse.accuracy)


def contrastive_reference(queries: Tensor, candidates: Tensor, first_row: int, temperature: float) -> Contrast:
    """The door's meaning with all logits at once; see contrastive."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    logits = queries.to(wide) @ candidates.to(wide).T / temperature  # [b, N]
    partner = first_row + torch.arange(len(queries), device=queries.device)
    accuracy = (logits.detach().argmax(1) == partner).to(wide).mean()
    return Contrast(F.cross_entropy(logits, partner), accuracy, accuracy, torch.zeros_like(accuracy))


def contrastive_both_reference(audio: Tensor, image: Tensor, temperature: float) -> Contrast:
    """The door's meaning with all logits at once; see contrastive_both."""
    return mean_of_directions(
        contrastive_reference(image, audio, 0, temperature), contrastive_reference(audio, image, 0, temperature)
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32 or wider, from operands of any float dtype."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.device.type == "cpu":  # has no matmul from half to float32
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)


class Side(Protocol):
    """The candidates of a comparison: N rows that come in blocks, from this process or from others."""

    first_row: int
    """Place of the first query's partner among all candidates; the other queries' partners follow it."""
    count: int
    """N."""
    dtype: torch.dtype
    """What both sides are multiplied in."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Every candidate once: place of a block's first row, and its rows [n, D]."""

    def gradient_blocks(self, wide: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The blocks once more, each with the gradient [n, D] that it has collected so far, to be added to."""

    def collected(self) -> Tensor:
        """After that: the whole gradient of the candidates that this process gave."""

    def combine(self, column_sums: Tensor, column_best: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """From this process's queries to those of all processes: each candidate's largest product and sum [2, N], and
        the partner of its best query [N]."""


class Here:
    """All candidates [N, D] are in this process, and so are all queries."""

    def __init__(self, candidates: Tensor, first_row: int):
        self.first_row, self.count, self.dtype = first_row, len(candidates), candidates.dtype
        self._rows = candidates.detach()

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """One block."""
        yield 0, self._rows

    def gradient_blocks(self, wide: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
        """One block."""
        self._gradient = torch.zeros_like(self._rows, dtype=wide)
        yield 0, self._rows, self._gradient

    def collected(self) -> Tensor:
        """What was added."""
        return self._gradient

    def combine(self, column_sums: Tensor, column_best: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """There are no other processes."""
        return column_sums, column_best


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, candidates: Tensor, side: Side, temperature: float, both: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = queries.to(side.dtype)
        wide = torch.promote_types(own.dtype, torch.float32)
        highs, totals, bests = [], [], []  # [b] of each block
        positive = torch.empty(len(own), dtype=wide, device=own.device)
        column_sums = torch.empty(2, side.count, dtype=wide, device=own.device) if both else None
        column_best = torch.empty(side.count, dtype=torch.int64, device=own.device)
        for first, rows in side.blocks():
            fused = fusable(own, rows)
            statistics = fresh_statistics(own, rows, positive, both, fused)
            for tile in tiles(len(own), len(rows), side.first_row - first):
                products = _product(own[tile.rows], rows[tile.columns].T)
                fold(products, tile, statistics, temperature, fused)
            high, total, best = statistics.rows
            bests.append(first_of_equals(high, best + first))
            high, total = merge(high, total, temperature)
            highs.append(high)
            totals.append(total)
            if column_sums is not None and statistics.columns is not None:
                high, total, best = statistics.columns
                here = slice(first, first + len(rows))
                column_sums[:, here] = merge(high, total, temperature)
                column_best[here] = first_of_equals(high, best + side.first_row)
        row_sums = merge(torch.stack(highs), torch.stack(totals), temperature)  # [2, b]
        loss = ((row_sums[0] - positive) / temperature + row_sums[1].log()).mean()
        partner = side.first_row + torch.arange(len(own), device=own.device)
        forward = (first_of_equals(torch.stack(highs), torch.stack(bests)) == partner).to(loss.dtype).mean()
        reverse = torch.zeros_like(forward)
        if column_sums is not None:
            column_sums, column_best = side.combine(column_sums, column_best, temperature)  # [2, N], [N]
            mine = slice(side.first_row, side.first_row + len(own))  # own candidates, own partners
            high, total = column_sums[:, mine]
            loss = (loss + ((high - positive) / temperature + total.log()).mean()) / 2
            reverse = (column_best[mine] == partner).to(loss.dtype).mean()
        ctx.save_for_backward(own, row_sums, column_sums)
        ctx.side, ctx.temperature, ctx.dtypes = side, temperature, (queries.dtype, candidates.dtype)
        ctx.mark_non_differentiable(forward, reverse)
        return loss, forward, reverse

    @staticmethod
    def backward(ctx: Any, arriving: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        own, row_sums, column_sums = ctx.saved_tensors
        directions = 1 if column_sums is None else 2
        factor = arriving / (directions * len(own) * ctx.temperature * GRADIENT_UNIT)
        wants_queries, wants_candidates = ctx.needs_input_grad[:2]
        to_queries = torch.zeros_like(own, dtype=row_sums.dtype)
        for first, rows, to_rows in ctx.side.gradient_blocks(row_sums.dtype):
            columns = None if column_sums is None else column_sums[:, first : first + len(rows)]
            for tile in tiles(len(own), len(rows), ctx.side.first_row - first):
                products = _product(own[tile.rows], rows[tile.columns].T)
                gradient = logit_gradient(products, tile, row_sums, columns, ctx.temperature, own.dtype)
                if wants_queries:
                    to_queries[tile.rows] += _product(gradient, rows[tile.columns])
                if wants_candidates:
                    to_rows[tile.columns] += _product(gradient.T, own[tile.rows])
        collected = ctx.side.collected()
        return to_queries.mul_(factor).to(ctx.dtypes[0]), collected.mul_(factor).to(ctx.dtypes[1]), None, None, None


@torch.compiler.disable  # dynamo loses the gradient of a Function whose outputs are filled in place
def contrastive_among(queries: Tensor, candidates: Tensor, side: Side, temperature: float, both: bool) -> Contrast:
    """Mean cross-entropy of queries [b, D] against all candidates of the side, by tiles; both: and the other way too.

    candidates [b or N, D] are those of them that this process gave: gradients reach them and the queries. The other
    way each own candidate looks for its query among all processes' queries; the loss is the mean of the two.
    All processes must back-propagate the same factor: what arrives here is taken for what arrives there too.
    """
    loss, forward, reverse = _Contrastive.apply(queries, candidates, side, temperature, both)
    return Contrast(loss, (forward + reverse) / 2 if both else forward, forward, reverse)


def _needs_tiles(queries: Tensor, candidates: Tensor) -> bool:
    return fusable(queries, candidates) or not fits_one_tile(len(queries), len(candidates))


def contrastive(queries: Tensor, candidates: Tensor, first_row: int, temperature: float) -> Contrast:
    """Mean cross-entropy of queries [b, D] against candidates [N, D]; query i's partner is first_row + i.

    Logits are dot products / temperature. On CUDA tiles of logits are folded by kernels, elsewhere in plain torch
    once they outgrow one tile: no device ever holds them all. Gradients reach both sides. Raises ValueError for a
    wrong dtype or shape.
    """
    _check(queries, candidates, ("queries", "candidates"), temperature)
    if not 0 <= first_row <= len(candidates) - len(queries):
        raise ValueError(
            f"first_row must leave room for {len(queries)} partners among {len(candidates)} candidates, got {first_row}"
        )
    if _needs_tiles(queries, candidates):
        return contrastive_among(queries, candidates, Here(candidates, first_row), temperature, both=False)
    return contrastive_reference(queries, candidates, first_row, temperature)


def contrastive_both(audio: Tensor, image: Tensor, temperature: float) -> Contrast:
    """The mean of contrastive(image, audio) and contrastive(audio, image), both [N, D], from one pass over the logits.

    Images are the queries: forward_accuracy is that of images finding their sounds. Raises ValueError for a wrong
    dtype or shape.
    """
    _check(audio, image, ("audio", "image"), temperature)
    if audio.shape != image.shape:
        raise ValueError(f"audio and image must be pairs, got {len(audio)} and {len(image)} rows")
    if _needs_tiles(image, audio):
        return contrastive_among(image, audio, Here(audio, 0), temperature, both=True)
    return contrastive_both_reference(audio, image, temperature)


def _check(one: Tensor, other: Tensor, names: tuple[str, str], temperature: float) -> None:
    require(names[0], one, ("rows", "D"), REFERENCE_FLOATS)
    require(names[1], other, ("rows", one.shape[1]), (one.dtype,))
    if 0 in (*one.shape, *other.shape):
        raise ValueError(f"{names[0]} and {names[1]} must not be empty, got {list(one.shape)} and {list(other.shape)}")
    if one.device != other.device:
        raise ValueError(f"{names[0]} and {names[1]} must lie on one device, got {one.device} and {other.device}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [B, D] scaled to length 1, in float32 or wider."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)

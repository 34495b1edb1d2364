"""InfoNCE over b queries and N candidates whose logits [b, N] never exist: one tile of them at a time.

D is the width of the rows. A tile's logits come from the library's matmul, one kernel per tile folds them into
running log-sum-exps (forward) or turns them into their gradient (backward, from recomputed logits), and matmuls
carry that to both sides. Both directions share the tiles: 2 + 2 + 2 + 2 = 8 N^2 D FLOPs, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.kernels.checks import REFERENCE_FLOATS, require
from cavmae_ds.kernels.contrastive_tiles import (
    GRADIENT_UNIT,
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
    """Share of queries whose best candidate (the first of equals) is their partner; no gradient."""


def contrastive_reference(queries: Tensor, candidates: Tensor, first_row: int, temperature: float) -> Contrast:
    """The door's meaning with all logits at once; see contrastive."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    logits = queries.to(wide) @ candidates.to(wide).T / temperature  # [b, N]
    partner = first_row + torch.arange(len(queries), device=queries.device)
    accuracy = (logits.detach().argmax(1) == partner).to(wide).mean()
    return Contrast(F.cross_entropy(logits, partner), accuracy)


def contrastive_both_reference(audio: Tensor, image: Tensor, temperature: float) -> Contrast:
    """The door's meaning with all logits at once; see contrastive_both."""
    to_audio, accuracy = contrastive_reference(image, audio, 0, temperature)
    return Contrast((to_audio + contrastive_reference(audio, image, 0, temperature).loss) / 2, accuracy)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32 or wider, from operands of any float dtype."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.device.type == "cpu":  # has no matmul from half to float32
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, candidates: Tensor, first_row: int, temperature: float, both: bool, fused: bool
    ) -> tuple[Tensor, Tensor]:
        statistics = fresh_statistics(queries, candidates, both, fused)
        for tile in tiles(len(queries), len(candidates), first_row):
            products = _product(queries[tile.rows], candidates[tile.columns].T)
            fold(products, tile, statistics, temperature, fused)
        row_sums = merge(statistics.row_high, statistics.row_total, temperature)  # [2, b]
        column_sums = None
        loss = ((row_sums[0] - statistics.positive) / temperature + row_sums[1].log()).mean()
        if statistics.column_high is not None and statistics.column_total is not None:
            column_sums = merge(statistics.column_high, statistics.column_total, temperature)  # [2, N]
            to_rows = ((column_sums[0] - statistics.positive) / temperature + column_sums[1].log()).mean()
            loss = (loss + to_rows) / 2
        leading = statistics.row_high == statistics.row_high.amax(0)
        best = torch.where(leading, statistics.row_best, len(candidates)).amin(0)  # the first of equals
        partner = first_row + torch.arange(len(queries), device=queries.device)
        accuracy = (best == partner).to(loss.dtype).mean()
        ctx.save_for_backward(queries, candidates, row_sums, column_sums)
        ctx.first_row, ctx.temperature = first_row, temperature
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, arriving: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        queries, candidates, row_sums, column_sums = ctx.saved_tensors
        directions = 1 if column_sums is None else 2
        factor = arriving / (directions * len(queries) * ctx.temperature * GRADIENT_UNIT)
        wants_queries, wants_candidates = ctx.needs_input_grad[:2]
        query_gradient = torch.empty_like(queries) if wants_queries else None
        to_candidates = torch.zeros_like(candidates, dtype=row_sums.dtype) if wants_candidates else None
        for tile in tiles(len(queries), len(candidates), ctx.first_row):
            own, others = queries[tile.rows], candidates[tile.columns]
            products = _product(own, others.T)
            gradient = logit_gradient(products, tile, row_sums, column_sums, ctx.temperature, queries.dtype)
            if query_gradient is not None:
                if tile.columns.start == 0:
                    to_own = torch.zeros_like(own, dtype=row_sums.dtype)
                to_own += _product(gradient, others)
                if tile.columns.stop == len(candidates):  # these rows are done: nothing wider than they need stays
                    query_gradient[tile.rows] = to_own.mul_(factor)
            if to_candidates is not None:
                to_candidates[tile.columns] += _product(gradient.T, own)
        candidate_gradient = None if to_candidates is None else to_candidates.mul_(factor).to(candidates.dtype)
        return query_gradient, candidate_gradient, None, None, None, None


@torch.compiler.disable  # dynamo loses the gradient of a Function whose outputs are filled in place
def _tiled(queries: Tensor, candidates: Tensor, first_row: int, temperature: float, both: bool) -> Contrast:
    fused = fusable(queries, candidates)
    return Contrast(*_Contrastive.apply(queries, candidates, first_row, temperature, both, fused))


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
        return _tiled(queries, candidates, first_row, temperature, both=False)
    return contrastive_reference(queries, candidates, first_row, temperature)


def contrastive_both(audio: Tensor, image: Tensor, temperature: float) -> Contrast:
    """The mean of contrastive(image, audio) and contrastive(audio, image), both [N, D], from one pass over the logits.

    The accuracy is that of images finding their sounds. Raises ValueError for a wrong dtype or shape.
    """
    _check(audio, image, ("audio", "image"), temperature)
    if audio.shape != image.shape:
        raise ValueError(f"audio and image must be pairs, got {len(audio)} and {len(image)} rows")
    if _needs_tiles(image, audio):
        return _tiled(image, audio, 0, temperature, both=True)
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

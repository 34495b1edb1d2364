"""Norms of trained weights and of gradients, block by block, exact at every ZeRO stage.

Each rank sums squares of what it holds.
Gradients are looked at when the optimizer is about to use them, which is the one moment at which every stage has them
whole, averaged over ranks and micro-batches. They have been clipped by then; the factor is known and taken out again,
so that the root of the sum of squares over all blocks is optim/grad_norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import Fragment, find_partitions

CLIPPING_EPS = 1e-6
"""What DeepSpeed and torch add to the norm before they divide by it."""


class BlockNorms:
    """Armed before a step, read after it; without that it costs nothing."""

    def __init__(self, engine: Any, world: World, clip_grad_norm: float):
        """clip_grad_norm: largest norm that the engine lets pass; 0 means any."""
        self._partitions = find_partitions(engine, world)
        self._clip = clip_grad_norm
        of_parameter = [block_of(name) for name in self._partitions.names]
        self._blocks = list(dict.fromkeys(of_parameter))  # in the order of the model
        self._turn = [self._blocks.index(block) for block in of_parameter]
        layout = zip(self._partitions.flats, self._partitions.fragments, strict=True)
        self._fragments = {id(flat): fragments for flat, fragments in layout}
        self._gradients: Tensor | None = None
        self._armed = False
        engine.basic_optimizer.register_step_pre_hook(self._before_step)

    def arm(self, armed: bool) -> None:
        """Whether to look at the gradients of the step that comes."""
        self._armed, self._gradients = armed, None

    def read(self, grad_norm: float) -> dict[str, float]:
        """Curves of the step that was just taken; gradients only if the optimizer took it. All ranks call it.

        grad_norm: of the whole gradient, before clipping.
        """
        weights = self._zeros()
        for flat, fragments in zip(self._partitions.flats, self._partitions.fragments, strict=True):
            self._add_squares(weights, flat, fragments)
        # A skipped step is skipped by all ranks, but a rank may hold nothing: whether it was is told by the sums.
        gradients = self._zeros() if self._gradients is None else self._gradients
        weights, gradients = self._partitions.over_ranks(torch.stack([weights, gradients])).sqrt().cpu()
        norms = {f"norm_weight/{block}": norm for block, norm in zip(self._blocks, weights.tolist(), strict=True)}
        if gradients.any():
            unclipped = gradients * max(1.0, (grad_norm + CLIPPING_EPS) / self._clip if self._clip else 1.0)
            for block, norm in zip(self._blocks, unclipped.tolist(), strict=True):
                norms[f"norm_gradient/{block}"] = norm
        return norms

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called by the optimizer: once a step, or, where ZeRO updates its flat tensors in turn, once for each."""
        if not self._armed:
            return
        if self._gradients is None:
            self._gradients = self._zeros()
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._add_squares(self._gradients, flat.grad, self._fragments[id(flat)])

    def _add_squares(self, sums: Tensor, values: Tensor, fragments: list[Fragment]) -> None:
        """Of a tensor laid out like the flat of these fragments; sums [blocks] float64."""
        if not fragments:
            return
        norms = torch._foreach_norm([fragment.of(values) for fragment in fragments])
        squares = torch.stack(list(norms)).double().square().to(sums.device)
        turn = torch.tensor([self._turn[fragment.parameter] for fragment in fragments], device=sums.device)
        sums.index_add_(0, turn, squares)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self._blocks), dtype=torch.float64, device=self._partitions.device)


def block_of(name: str) -> str:
    """`blocks_a.0.attn.qkv.weight` belongs to `blocks_a.0`, `patch_embed_a.proj.bias` to `patch_embed_a`."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first

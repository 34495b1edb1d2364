"""LAMB and LARS: every layer's step is in proportion to the norm of its weights, also where ranks share a layer.

ZeRO hands an optimizer one flat slice of many layers. Written plainly, its norms would be those of the slice (weights
off by 2.7e-2 after three steps: spec/engine-notes.md 4). Here each rank sums squares per layer over what it holds of
it, one all-reduce adds them up, and every element gets the ratio of its layer: the same step on any number of ranks, at
any ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adam import adam

from cavmae_ds.distributed.zero_layout import Fragment, Partitions

LARS_TRUST = 0.001
"""LARS: share of the weights' norm that a step at rate 1 may be long (You et al., arXiv 1708.03888)."""


class _Pair(NamedTuple):
    """A tensor that the optimizer updates, and what its ratio is taken with and put on."""

    weights: Tensor
    update: Tensor


class LayerwiseOptimizer(Optimizer):
    """What Lamb and Lars share: norms of whole layers.

    Groups with `layerwise: False` keep the plain rate. Until adopt() every tensor in the groups is a layer of its own.
    """

    _partitions: Partitions | None = None

    def adopt(self, partitions: Partitions) -> None:
        """Learn which layers the engine's flat tensors are made of. All ranks then step together."""
        self._partitions = partitions

    def _norms(self, pairs: list[_Pair]) -> tuple[list[list[Fragment]], Tensor]:
        """The fragments of each pair's tensor and the norms [2, layers] float64 of weights and update, over ranks."""
        fragments = self._fragments([weights for weights, _ in pairs])
        layers = 1 + max((part.parameter for parts in fragments for part in parts), default=-1)
        if self._partitions is not None:
            layers = len(self._partitions.names)
        device = pairs[0].weights.device
        squares = torch.zeros(2, layers, dtype=torch.float64, device=device)
        for pair, parts in zip(pairs, fragments, strict=True):
            if parts:
                index = torch.tensor([part.parameter for part in parts], device=device)
                for row, values in zip(squares, pair, strict=True):
                    norms = torch._foreach_norm([part.of(values) for part in parts])
                    row.index_add_(0, index, torch.stack(norms).double().square())
        if self._partitions is not None:
            squares = self._partitions.over_ranks(squares)
        return fragments, squares.sqrt()

    def _fragments(self, tensors: list[Tensor]) -> list[list[Fragment]]:
        if self._partitions is None:
            return [[Fragment(number, 0, 0, tensor.numel())] for number, tensor in enumerate(tensors)]
        layout = zip(self._partitions.flats, self._partitions.fragments, strict=True)
        known = {id(flat): parts for flat, parts in layout}
        return [known[id(tensor)] for tensor in tensors]

    def _scale(self, pairs: list[_Pair], fragments: list[list[Fragment]], ratios: Tensor) -> None:
        """Multiply every fragment of the updates with the ratio [layers] of its layer."""
        for pair, parts in zip(pairs, fragments, strict=True):
            here = ratios.to(pair.update.device, pair.update.dtype)
            for part in parts:
                part.of(pair.update).mul_(here[part.parameter])

    def _tensors(self) -> Iterable[tuple[dict[str, Any], Parameter, dict[str, Any]]]:
        """Group, tensor and state of everything that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, self.state[parameter]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient; 1, the plain step, where either norm is zero."""
    return torch.where((numerator > 0) & (denominator > 0), numerator / denominator, 1.0)


class Lamb(LayerwiseOptimizer):
    """LAMB (You et al., arXiv 1904.00962): Adam's step plus decay, stretched to the norm of the layer's weights.

    The same rule as timm.optim.Lamb without its own clipping: the engine clips.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "layerwise": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; closures are not supported."""
        pairs: list[_Pair] = []
        steps = []
        for group, parameter, state in self._tensors():
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            update = _adam_direction(parameter, state, group).add_(parameter, alpha=group["weight_decay"])
            steps.append((parameter, update, group["lr"]))
            if group["layerwise"]:
                pairs.append(_Pair(parameter, update))
        if pairs:
            fragments, (weights, updates) = self._norms(pairs)
            self._scale(pairs, fragments, _ratio(weights, updates))
        for parameter, update, lr in steps:
            parameter.add_(update, alpha=-lr)


def _adam_direction(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """m / (sqrt(v) + eps), bias-corrected; the state moves on. torch's own Adam takes a step of 1 from zero."""
    moved = torch.zeros_like(parameter)
    assert parameter.grad is not None
    adam(
        [moved], [parameter.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
        amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=1.0, weight_decay=0.0, eps=group["eps"],
        maximize=False,
    )  # fmt: skip
    return moved.neg_()


class Lars(LayerwiseOptimizer):
    """LARS (You et al., arXiv 1708.03888): momentum over gradients scaled to the norm of the layer's weights.

    The same rule as timm.optim.Lars without dampening. Gradients are overwritten.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, eps: float):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": 0.0, "layerwise": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; closures are not supported."""
        for group in self.param_groups:
            pairs = [_Pair(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs and group["layerwise"]:
                decay = group["weight_decay"]
                fragments, (weights, gradients) = self._norms(pairs)
                for weight, gradient in pairs:
                    gradient.add_(weight, alpha=decay)
                longest = gradients + decay * weights + group["eps"]
                ratios = torch.where(gradients > 0, _ratio(LARS_TRUST * weights, longest), 1.0)
                self._scale(pairs, fragments, ratios)
        for group, parameter, state in self._tensors():
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
            parameter.add_(state["momentum_buffer"], alpha=-group["lr"])

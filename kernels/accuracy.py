"""How far a door is from the truth, measured with eager's own error as the yardstick.

The truth is the reference in float64; eager is the reference in the inputs' dtype. Nobody tunes tolerances:
the door may be off by twice what eager is off by, plus a few units in the last place of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Units in the last place. In float32 the order of a sum alone moves a few, and eager may be right by luck. Triton 3.6's
# interpreter cuts bfloat16 off instead of rounding it, and a gradient may be stored twice on its way: two units there.
SLACK = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 1}


class Deviation(NamedTuple):
    """One output or gradient of a door against the truth."""

    name: str
    worst: float
    """Largest absolute error of the door; infinite where it is NaN and the truth is not."""
    eager: float
    """Largest absolute error of the reference in the same dtype."""
    allowed: float

    @property
    def good(self) -> bool:
        """Whether the door is as accurate as it must be."""
        return self.worst <= self.allowed


def outputs_and_gradients(
    function: Callable[..., Any], inputs: Mapping[str, Any], differentiable: Iterable[str], outputs: Iterable[str]
) -> dict[str, Tensor]:
    """The function's named outputs and, as 'gradient of x', the gradients of its differentiable inputs.

    What arrives from above at an output is fixed by its shape, so that all calls of one case get the same.
    """
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in differentiable}
    result = function(**{**inputs, **leaves})
    values = dict(zip(outputs, result if isinstance(result, tuple) else (result,), strict=True))
    reached = {name: value for name, value in values.items() if value.requires_grad}
    if leaves:
        arriving = [_arriving(value) for value in reached.values()]
        gradients = torch.autograd.grad(list(reached.values()), list(leaves.values()), arriving)
        values |= {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in values.items()}


def in_float64(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with every float tensor, and every dtype that is asked for, widened to float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: wide(value) for name, value in inputs.items()}


def deviations(
    reference: Callable[..., Any],
    fused: Callable[..., Any],
    inputs: Mapping[str, Any],
    differentiable: Iterable[str],
    outputs: Iterable[str],
) -> list[Deviation]:
    """Every output and gradient of the door, measured."""
    names = tuple(differentiable), tuple(outputs)
    truth = outputs_and_gradients(reference, in_float64(inputs), *names)
    eager = outputs_and_gradients(reference, inputs, *names)
    ours = outputs_and_gradients(fused, inputs, *names)
    return [_deviation(name, truth[name], eager[name], ours[name]) for name in truth]


def _deviation(name: str, truth: Tensor, eager: Tensor, ours: Tensor) -> Deviation:
    if (eager.dtype, eager.shape) != (ours.dtype, ours.shape):
        raise AssertionError(
            f"{name}: reference gives {eager.dtype} {list(eager.shape)}, door {ours.dtype} {list(ours.shape)}"
        )
    if not truth.is_floating_point():
        wrong = float((eager != ours).sum())
        return Deviation(name, wrong, 0.0, 0.0)
    off = (ours.double() - truth).abs().nan_to_num(nan=torch.inf)
    eager_worst = float((eager.double() - truth).abs().amax())
    largest = float(truth.abs().amax())
    if not name.startswith("gradient"):
        largest = max(1.0, largest)  # a loss near 0 is still a difference of numbers of order 1
    slack = SLACK[ours.dtype] * torch.finfo(ours.dtype).eps * largest
    return Deviation(name, float(off.amax()), eager_worst, 2 * eager_worst + slack)


def _arriving(output: Tensor) -> Tensor:
    if output.is_meta:
        return torch.empty_like(output)
    generator = torch.Generator(output.device).manual_seed(output.numel())
    wide = torch.randn(output.shape, generator=generator, device=output.device, dtype=torch.float64)
    return wide.to(torch.bfloat16).to(output.dtype)  # the same numbers in every dtype

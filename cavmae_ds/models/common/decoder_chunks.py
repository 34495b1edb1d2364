"""A decoder that sees some clips at a time: forward and backward of one chunk, then of the next.

Its loss is per clip, so a chunk's gradient needs nothing but the chunk. What stays until backward is the gradient of
the latents and of the decoder's parameters; nothing is computed twice. B clips, K tokens, D wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Reconstruction(NamedTuple):
    """Scalars: the loss of rebuilding hidden patches."""

    total: Tensor
    """The weighted sum of the parts: the one to back-propagate."""
    parts: tuple[Tensor, ...]
    """Of each target, unweighted."""


class DecoderChunks(nn.Module):
    """Runs chunks. A module without parameters, so that ZeRO-3 can be told to gather the decoder's around it: else
    each chunk would gather them twice, and nobody would before their gradients arrive (see engine.build_engine).
    """

    def __init__(self, clips: int):
        """clips: size of a chunk; 0 is never run."""
        super().__init__()
        self.clips = clips

    def forward(
        self,
        latents: Tensor,
        parameters: Callable[[], list[nn.Parameter]],
        loss_of: Callable[[Tensor, slice], Reconstruction],
    ) -> Reconstruction:
        """Latents [B, K, D] to the mean over clips of loss_of(latents of some clips, which clips).

        Gradients of total reach the latents and the given parameters; the parts have none. The parameters come as a
        function, because ZeRO-3 wraps every tensor that a module is given.
        """
        total, *parts = _Chunks.apply(latents, loss_of, self.clips, *parameters())
        return Reconstruction(total, tuple(parts))


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, latents: Tensor, loss_of: Callable[[Tensor, slice], Reconstruction], size: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        latent_gradient = torch.empty_like(latents)
        sums: list[Tensor | None] = [None] * len(parameters)
        values = []
        for first in range(0, len(latents), size):
            rows = slice(first, min(first + size, len(latents)))
            share = (rows.stop - rows.start) / len(latents)
            with torch.enable_grad():
                part = latents[rows].detach().requires_grad_()
                losses = loss_of(part, rows)
            values.append(torch.stack([losses.total, *losses.parts]).detach() * share)
            arriving = torch.full_like(losses.total, share)
            part_gradient, *gradients = torch.autograd.grad(
                losses.total, (part, *parameters), arriving, allow_unused=True
            )
            latent_gradient[rows] = part_gradient
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    sums[i] = _added(sums[i], gradient)
        total, *parts = torch.stack(values).sum(0).unbind()
        ctx.save_for_backward(latent_gradient, *sums)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        ctx.mark_non_differentiable(*parts)
        return total, *parts

    @staticmethod
    def backward(ctx: Any, arriving: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        latent_gradient, *sums = ctx.saved_tensors
        gradients = (
            None if total is None else (total * arriving).to(dtype)
            for total, dtype in zip(sums, ctx.dtypes, strict=True)
        )
        return latent_gradient * arriving.to(latent_gradient.dtype), None, None, *gradients


def _added(total: Tensor | None, gradient: Tensor) -> Tensor:
    """Chunks are summed in float32 or wider: bf16 would swallow what the later ones add."""
    if total is None:
        return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return total.add_(gradient)

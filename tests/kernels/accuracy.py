"""The bar for every kernel: within twice eager's own error against float64, and every element written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch

from cavmae_ds.kernels.accuracy import deviations
from cavmae_ds.kernels.launching import INTERPRETED

needs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()),
    reason="kernels run on a GPU, or in Triton's interpreter: set TRITON_INTERPRET=1",
)


def assert_as_accurate_as_eager(
    reference: Callable[..., Any],
    fused: Callable[..., Any],
    inputs: Mapping[str, Any],
    differentiable: Iterable[str] = (),
    outputs: Iterable[str] = ("output",),
) -> None:
    """Outputs and gradients of the door against the reference in float64, with eager's error as the yardstick."""
    for found in deviations(reference, fused, inputs, differentiable, outputs):
        assert found.good, f"{found.name}: off by {found.worst:.1e}, allowed {found.allowed:.1e}"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN (integers: a huge number), so that an element nobody wrote shows."""

    def poison(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = allocate(*args, **kwargs)
            if fresh.is_meta:
                return fresh
            return fresh.fill_(torch.nan if fresh.is_floating_point() else torch.iinfo(fresh.dtype).max)

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))

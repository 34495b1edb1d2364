"""How the doors launch their kernels: on CUDA, in Triton's interpreter, or only written down for the compiler.

Every launch goes through `launch`, so that kernels/aot.py sees the configurations that a GPU would be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1 before import: kernels run in Python


@dataclass(frozen=True)
class TensorArgument:
    """What Triton specialises a tensor argument on: its dtype, and whether its address is a multiple of 16."""

    dtype: torch.dtype
    address: int
    """Modulo 16: 0 when vector loads are allowed."""

    def data_ptr(self) -> int:
        """The address, as Triton asks tensors for it."""
        return self.address


@dataclass(frozen=True)
class Launch:
    """One kernel launch as it was asked for."""

    kernel: Any = field(repr=False)
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    """Positional: TensorArgument for a tensor, else the number itself."""
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The kernel's name in its file."""
        return self.kernel.__name__


_recordings: list[list[Launch]] = []
_references: list[None] = []


@contextmanager
def references() -> Iterator[None]:
    """Inside, every door takes its reference, on every device: what the kernels are compared with."""
    _references.append(None)
    try:
        yield
    finally:
        _references.pop()


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, no kernel runs: each launch is written down, and doors take meta tensors as if on a GPU."""
    launches: list[Launch] = []
    _recordings.append(launches)
    try:
        yield launches
    finally:
        _recordings.pop()


def can_launch(*tensors: Tensor) -> bool:
    """Whether kernels run on these tensors: all on CUDA, or Triton interprets, or meta tensors while recording."""
    if _references:
        return False
    if _recordings:
        return all(x.is_meta for x in tensors)
    return all(x.is_cuda for x in tensors) or (INTERPRETED and all(x.device.type == "cpu" for x in tensors))


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 1, **constexprs: Any
) -> None:
    """Run the kernel on the device of its first tensor; an empty grid is no launch."""
    if 0 in grid:
        return
    if _recordings:
        arguments = tuple(_describe(x) if isinstance(x, Tensor) else x for x in args)
        _recordings[-1].append(Launch(kernel, grid, arguments, constexprs, num_warps, num_stages))
        return
    device = next(x.device for x in args if isinstance(x, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):  # Triton launches on the current device, which may be another
            kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)
    else:
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)


def _describe(tensor: Tensor) -> TensorArgument:
    return TensorArgument(tensor.dtype, int(tensor.storage_offset() * tensor.element_size()) % 16)

"""Time and memory of work on a GPU: CUDA events, a cold L2 cache, the median of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

FLUSH_BYTES = 256 << 20  # several times any L2 cache


@dataclass(frozen=True)
class Timing:
    """One piece of work."""

    ms: float
    peak_mib: float
    """Above what was there before."""


def timed(work: Callable[[], Any], budget_ms: float = 150.0, cold: bool = True) -> Timing:
    """Median time of the work after a warm-up, spending about budget_ms; 5 to 50 repetitions."""
    work()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    first = _once(work)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda") if cold else None
    times = []
    for _ in range(min(50, max(5, int(budget_ms / first)))):
        if flush is not None:
            flush.zero_()
        times.append(_once(work))
    return Timing(median(times), peak)


def _once(work: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth() -> float:
    """Bytes per second of a large copy, reads and writes counted."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source)).ms * 1e3


def matmul_rate() -> float:
    """FLOP per second of large bf16 matmuls, the best of some sizes."""
    rates = []
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        rates.append(2 * size**3 / timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)).ms * 1e3)  # type: ignore[misc]
    return max(rates)

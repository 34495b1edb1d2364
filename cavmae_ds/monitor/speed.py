"""How fast a run is, and which rank holds the others up.

A step takes equally long on all ranks, because each waits for the slowest one in every exchange. What tells them apart
is the work before the exchanges: the wait for clips, and the model's forward, in which nothing is waited for (sounds of
the contrastive loss leave during it, gradients follow after it). Under ZeRO-3 the forward gathers parameters, which
makes it equal again: there only the wait for clips tells, and a slow GPU does not show.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

Item = TypeVar("Item")

GIB = 2**30
SLOW_FACTOR = 1.2
"""So many times the median rank's own work is slow."""
SLOW_SHARE = 0.05
"""... if the others wait for it for at least this share of a step: what is short may well vary."""
SLOW_POINTS = 3
"""Points in a row until a rank is named."""


class OwnWork:
    """Seconds that this rank spent waiting for clips, and in the forward of the model while it trains."""

    def __init__(self, engine: Any, device: torch.device):
        self.waited_s = 0.0
        self._forward_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._on_gpu = device.type == "cuda"
        self._began: Any = None
        if engine.zero_optimization_stage() < 3:
            engine.module.register_forward_pre_hook(self._begin)
            engine.module.register_forward_hook(self._end)

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass batches through, adding up how long each was waited for."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waited_s += time.perf_counter() - asked
            yield batch

    def take(self) -> tuple[float, float]:
        """Seconds waited, and seconds of own work with them, since the last call; waits for the device."""
        _wait(self._on_gpu)
        forward_s = self._forward_s + sum(began.elapsed_time(ended) for began, ended in self._events) / 1000
        taken = self.waited_s, self.waited_s + forward_s
        self.waited_s, self._forward_s = 0.0, 0.0
        self._events.clear()
        return taken

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        if module.training:  # validation is not part of a step
            self._began = self._now()

    def _end(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not module.training:
            return
        if self._on_gpu:
            self._events.append((self._began, self._now()))
        else:
            self._forward_s += time.perf_counter() - self._began

    def _now(self) -> Any:
        """The host's clock says little about a GPU: an event in its queue does."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Spread(NamedTuple):
    """Own work of the ranks, seconds a step."""

    median_s: float
    max_s: float
    slowest: int
    """Its rank."""
    share: float
    """Of a step: how long the median rank waits for the slowest one."""


def spread(own_s: Sequence[float], step_s: float) -> Spread:
    """own_s: of each rank, a step; step_s: what a step takes on the clock."""
    median_s, max_s = statistics.median(own_s), max(own_s)
    return Spread(median_s, max_s, list(own_s).index(max_s), (max_s - median_s) / step_s)


class Stragglers:
    """Names a rank that stays slow, once for each time it becomes so."""

    def __init__(self, hosts: Sequence[str]):
        """hosts: name of each rank's machine."""
        self._hosts = hosts
        self._slow, self._points = -1, 0

    def judge(self, found: Spread) -> str | None:
        """A sentence at the SLOW_POINTS-th point in a row at which the same rank is slow."""
        slow = found.max_s > SLOW_FACTOR * found.median_s and found.share > SLOW_SHARE
        rank = found.slowest if slow else -1
        self._points = self._points + 1 if rank == self._slow else 1
        self._slow = rank
        if not slow or self._points != SLOW_POINTS:
            return None
        return (
            f"rank {rank} on host {self._hosts[rank]} is slow: {found.max_s:.3g} s of own work a step, the median rank "
            f"{found.median_s:.3g} s; the others wait for it for {found.share:.0%} of the time"
        )


def matmul_ceiling_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on this device, measured now (best of 5): the 100 % of perf/mfu."""
    side = 8192 if device.type == "cuda" else 768
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait(device.type == "cuda")
        started = time.perf_counter()
        left @ right
        _wait(device.type == "cuda")
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def memory_gib(device: torch.device) -> dict[str, float]:
    """Memory of this rank: on a GPU held by tensors, taken from the device and the most ever held; on a CPU resident
    now and at most.
    """
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device) / GIB,
            "reserved": torch.cuda.memory_reserved(device) / GIB,
            "peak": torch.cuda.max_memory_allocated(device) / GIB,
        }
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize() / GIB,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()

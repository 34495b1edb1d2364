"""Ways of doing the same work, taking turns in one run: their ratios hold where a machine's speed drifts."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Spent:
    """What one way of doing the work took, in seconds."""

    cpu_s: float
    wall_s: float


def take_turns(works: Mapping[Name, Callable[[], Any]], rounds: int = 7) -> dict[Name, Spent]:
    """Medians of each way, one round of all after another; a round before them warms up."""
    spent: dict[Name, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            cpu_s, wall_s = cpu_seconds(), time.perf_counter()
            work()
            if turn:
                spent[name].append((cpu_seconds() - cpu_s, time.perf_counter() - wall_s))
    return {name: Spent(*(median(values) for values in zip(*times, strict=True))) for name, times in spent.items()}


def cpu_seconds() -> float:
    """CPU time of this process and of its processes that have ended."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def machine() -> dict[str, Any]:
    """The CPU's name, the cores this process may use, and how busy they are: runnable processes of the last minute."""
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return {"cpu": names[0] if names else platform.machine(), "cores": cores, "load": round(os.getloadavg()[0], 2)}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

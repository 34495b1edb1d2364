"""How fast ranks exchange what training exchanges, and whether it arrives unchanged."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cavmae_ds.distributed.collectives import max_over_ranks, start_gather, start_max, sum_over_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.doctor.finding import Finding, fix, note, ok

MIB, FLOAT_BYTES = 1 << 20, 4
SIZES = MIB, 64 * MIB
REPEATS = 5
SLOW_GBS = 5.0
"""GB/s between GPUs of several hosts; one adapter of 100 Gbit/s gives more."""


def moment() -> float:
    """This rank's clock, seconds since 1970, just when all ranks are in the same call."""
    for _ in range(2):  # the first one makes the group
        start_max([0])()
    return time.time()


def check_links(world: World) -> list[Finding]:
    """Both collectives of training at a small and a large size; every rank takes the same turns, whatever it sees."""
    found = []
    for size in SIZES:
        values = torch.full((size // FLOAT_BYTES,), float(world.rank + 1), device=world.device)
        total = world.size * (world.size + 1) / 2
        taken_s, reduced = _fastest(sum_over_ranks, values)
        right = bool((reduced == total).all())
        found.append(link(f"all_reduce {size // MIB} MiB", taken_s, 2 * size, world, right))

        rows = values[: len(values) // world.size].unsqueeze(1)  # [n, 1]: all ranks' together have the size
        taken_s, gathered = _fastest(_gather, rows)
        sent = torch.arange(1, world.size + 1, device=world.device).repeat_interleave(len(rows))
        right = bool((gathered.squeeze(1) == sent).all())
        found.append(link(f"all_gather {size // MIB} MiB", taken_s, size, world, right))
    return found


def _gather(rows: Tensor) -> Tensor:
    return start_gather(rows)()


def _fastest(exchange: Callable[[Tensor], Tensor], values: Tensor) -> tuple[float, Tensor]:
    """Seconds of the fastest of a few turns, on the slowest rank, after one that makes connections; what arrived."""
    arrived, best_s = exchange(values), float("inf")
    for _ in range(REPEATS):
        _wait_for(values.device)
        began = time.perf_counter()
        arrived = exchange(values)
        _wait_for(values.device)
        best_s = min(best_s, time.perf_counter() - began)
    slowest_s = max_over_ranks(torch.tensor([best_s], device=values.device, dtype=torch.float64))
    return float(slowest_s), arrived


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def link(name: str, taken_s: float, moved_bytes: float, world: World, right: bool) -> Finding:
    """One measurement. Slow is only said of GPUs of several hosts.

    moved_bytes: times (ranks - 1) / ranks what the slowest link carries, as nccl-tests counts its bus bandwidth.
    """
    if not right:
        do = "test memory, adapters and cables of these hosts (docs/multinode.md)"
        return fix(name, "what arrives is not what was sent", do)
    on_gpu = world.device.type == "cuda"
    by = "NCCL " + ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else "gloo"
    rate_gbs = moved_bytes * (world.size - 1) / world.size / taken_s / 1e9
    said = f"{taken_s * 1e3:.2f} ms, bus bandwidth {rate_gbs:.2f} GB/s, {world.size} ranks, {by}"
    if on_gpu and world.hosts > 1 and moved_bytes >= SIZES[-1] and rate_gbs < SLOW_GBS:
        return note(name, said, "test the network as docs/multinode.md says; NCCL_DEBUG=INFO names the adapters in use")
    return ok(name, said)

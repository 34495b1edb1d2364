"""What is looked at on a host, and by each rank for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.distributed.environment import ranks_of_this_host
from cavmae_ds.doctor.bucket import check_address
from cavmae_ds.doctor.compiling import check_compiler
from cavmae_ds.doctor.devices import check_devices, check_threads
from cavmae_ds.doctor.environment import check_environment
from cavmae_ds.doctor.finding import Check, Finding, bounded, ok
from cavmae_ds.doctor.leftovers import check_leftovers
from cavmae_ds.doctor.space import (
    check_cache,
    check_checkpoints,
    check_limits,
    check_shared_memory,
    check_temporary,
    parameters,
)
from cavmae_ds.doctor.versions import check_versions
from cavmae_ds.tasks import inputs_of, task_of
from cavmae_ds.weights.init import examine_start


@dataclass(frozen=True)
class Asked:
    """What the doctor was told; the same on all ranks."""

    cfg: RunConfig
    has_run: bool
    """The config comes from a run file."""
    addresses: tuple[str, ...]
    """Besides those of the run."""
    clips_per_second: float
    limit_s: float
    environment: Mapping[str, str]
    """As it was when the doctor was started: joining the others adds to it."""

    @property
    def ranks(self) -> int:
        """All of them."""
        return int(self.environment.get("WORLD_SIZE", 1))


def own_findings(asked: Asked, local_rank: int) -> list[Finding]:
    """Of this rank; the first one of a host looks at the host too, one thing after the other."""
    checks: dict[str, Check] = {"device": partial(check_devices, asked.cfg.train.precision, local_rank)}
    if local_rank == 0:
        checks |= _of_a_host(asked)
    return [finding for name, check in checks.items() for finding in bounded(name, check, asked.limit_s)]


def run_findings(asked: Asked) -> list[Finding]:
    """Whether the run fits its ranks, its shards, its engine fragment and its first weights; one rank asks."""
    if not asked.has_run:
        return []
    checks = {"run": partial(_numbers, asked), "init": partial(_first_weights, asked)}
    return [finding for name, check in checks.items() for finding in bounded(name, check, asked.limit_s)]


def _first_weights(asked: Asked) -> list[Finding]:
    cfg = asked.cfg
    origin = examine_start(cfg.init, cfg.model, cfg.run_dir, partial(task_of(cfg).build_model, cfg))
    if origin is None:
        return []
    fresh = f", {len(origin.missing)} entries start fresh" if origin.missing else ""
    return [ok("init", f"{origin.source} ({origin.kind}) fits the model{fresh}")]


def _numbers(asked: Asked) -> list[Finding]:
    cfg = asked.cfg
    numbers = task_of(cfg).resolve(cfg, asked.ranks)
    return [ok("run", f"{numbers.clips:,} clips, {numbers.total_steps:,} steps of {numbers.global_batch:,} clips")]


def _shared_memory(asked: Asked) -> list[Finding]:
    cfg = asked.cfg
    inputs = inputs_of(cfg)
    return check_shared_memory(cfg.data.workers, cfg.train.micro_batch, inputs)


def _disk(asked: Asked) -> list[Finding]:
    cfg = asked.cfg
    return check_checkpoints(cfg.run_dir, cfg.checkpoint.keep_last, parameters(cfg)) + check_cache(cfg.data)


def _of_a_host(asked: Asked) -> dict[str, Check]:
    cfg, hosts = asked.cfg, max(1, asked.ranks // ranks_of_this_host())
    workers = cfg.data.workers
    checks: dict[str, Check] = {
        "versions": check_versions,
        "threads": partial(check_threads, workers),
        "/dev/shm": partial(_shared_memory, asked),
        "TMPDIR": partial(check_temporary, workers),
        "disk": partial(_disk, asked),
        "limits": partial(check_limits, asked.ranks, workers),
        "environment": partial(check_environment, asked.environment),
    }
    for url in _read_from(asked):
        checks[url] = partial(check_address, url, asked.limit_s, asked.clips_per_second / hosts, written=False)
    if asked.has_run and cfg.checkpoint.address:
        url = cfg.checkpoint.address
        checks[url] = partial(check_address, url, asked.limit_s, 0.0, written=True)
    return checks | {"Triton": check_compiler, "leftovers": check_leftovers}


def _read_from(asked: Asked) -> list[str]:
    data = asked.cfg.data
    addresses = [*(source.remote for source in data.all_sources), data.validation, *asked.addresses]
    return list(dict.fromkeys(address for address in addresses if address))

"""Room for what a run writes on a host: shared memory, temporary files, checkpoints, cached shards, open files."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

import torch

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.loading.handover import (
    LONGEST_TEMPORARY_FOLDER,
    check_temporary_folder,
    files_needed,
    larger,
    memory_needed,
)
from cavmae_ds.distributed.environment import ranks_of_this_host
from cavmae_ds.doctor.finding import Finding, fix, ok
from cavmae_ds.errors import distinct
from cavmae_ds.fault_tolerance.shared_memory_leftovers import FOLDER
from cavmae_ds.models import family_of
from cavmae_ds.tasks import task_of

GIB, MIB = 2**30, 2**20
ADAPTERS = Path("/sys/class/infiniband")
STORED_CLIP_BYTES = 448_000
"""Of a clip in its shard (spec/data-path.md); as DataConfig.shuffle_block says."""
CHECKPOINT_BYTES = 16
"""A parameter: fp32 weight, two moments, running mean."""


def check_shared_memory(cfg: RunConfig) -> list[Finding]:
    """What loader workers hand over through /dev/shm fits there."""
    ranks, workers, clips = ranks_of_this_host(), cfg.data.workers, cfg.train.micro_batch
    needed = memory_needed(ranks, workers, clips, family_of(cfg.model.family).inputs(cfg.model, cfg.task))
    there = shutil.disk_usage(FOLDER)
    return [shared_memory(there.free, there.total, needed, f"{ranks} x {workers} loader workers")]


def shared_memory(free: int, total: int, needed: int, whose: str) -> Finding:
    """Free bytes against needed ones."""
    there, taken = distinct(free / GIB, needed / GIB, ".2f")
    said = f"{there} of {total / GIB:.2f} GiB free, {whose} take up to {taken}"
    if free >= needed:
        return ok("/dev/shm", said)
    return fix("/dev/shm", said, f"{larger(total - free + needed)}, or fewer data.workers")


def check_temporary(cfg: RunConfig) -> list[Finding]:
    """TMPDIR is a folder that can be written, and its name leaves room for the workers' sockets."""
    folder, told = tempfile.gettempdir(), os.environ.get("TMPDIR", "")
    if told and Path(told).absolute() != Path(folder):
        return [fix("TMPDIR", f"{told} cannot be written, {folder} is taken", "make that folder, or unset TMPDIR")]
    check_temporary_folder(cfg.data.workers)
    length = len(os.fsencode(folder))
    return [ok("TMPDIR", f"{folder}, {length} of at most {LONGEST_TEMPORARY_FOLDER} bytes")]


def check_disk(cfg: RunConfig) -> list[Finding]:
    """Free space where checkpoints and fetched shards go."""
    copies = cfg.checkpoint.keep_last + 1
    needed = copies * CHECKPOINT_BYTES * parameters(cfg)
    found = [disk("run_dir", cfg.run_dir, needed, f"{copies} checkpoints", "set run_dir to a larger disk, or free")]
    if any("://" in source.remote for source in cfg.data.all_sources):
        limit = cfg.data.cache_limit_gib
        wanted = int(limit * GIB) if limit else cfg.data.shuffle_block * STORED_CLIP_BYTES
        whose = "data.cache_limit_gib" if limit else f"one data.shuffle_block of {cfg.data.shuffle_block} clips"
        cache = cfg.data.cache or Path(tempfile.gettempdir())
        do = "lower data.shuffle_block or data.cache_limit_gib, set data.cache to a larger disk, or free"
        found.append(disk("cache", cache, wanted, whose, do))
    return found


def parameters(cfg: RunConfig) -> int:
    """Of the run's model; allocates nothing."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in task_of(cfg).build_model(cfg).parameters())


def disk(name: str, folder: Path, needed: int, whose: str, do: str) -> Finding:
    """Free bytes below a folder, which need not be there yet but must be ours to write."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    there, taken = distinct(free / GIB, needed / GIB, ".1f")
    said = f"{folder}: {there} GiB free, {whose} take {taken}"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return fix(name, f"{folder} cannot be written", f"make {existing} a folder that this user may write to")
    if free < needed:
        return fix(name, said, f"{do} {(needed - free) / GIB:.1f} GiB")
    return ok(name, said)


def check_limits(cfg: RunConfig, ranks: int) -> list[Finding]:
    """Limits of the shell, which ranks inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [open_files(soft, hard, files_needed(ranks, cfg.data.workers))]
    if ADAPTERS.is_dir() and any(ADAPTERS.iterdir()):
        adapters = ", ".join(sorted(adapter.name for adapter in ADAPTERS.iterdir()))
        found.append(locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], adapters))
    return found


def open_files(soft: int, hard: int, needed: int) -> Finding:
    """ulimit -n against what the first rank and its workers hold open."""
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return ok("open files", f"ulimit -n is {'unlimited' if soft == resource.RLIM_INFINITY else soft}")
    do = f"ulimit -n {needed}"
    if hard != resource.RLIM_INFINITY and hard < needed:
        do = f"raise nofile to {needed} in /etc/security/limits.conf (services: LimitNOFILE), then {do}"
    return fix("open files", f"ulimit -n is {soft}, up to {needed} may be open", do)


def locked_memory(soft: int, adapters: str) -> Finding:
    """InfiniBand registers memory, which must be allowed to stay in place."""
    if soft == resource.RLIM_INFINITY:
        return ok("locked memory", f"ulimit -l is unlimited, for {adapters}")
    return fix(
        "locked memory",
        f"ulimit -l is {soft // 1024} KiB, and {adapters} register memory",
        "set memlock to unlimited in /etc/security/limits.conf (services: LimitMEMLOCK=infinity), log in again",
    )

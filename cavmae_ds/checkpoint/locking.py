"""A run locks its run folder from before it reads a checkpoint to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cavmae_ds.checkpoint.disk import find_disk
from cavmae_ds.checkpoint.folder import checkpoint_root
from cavmae_ds.checkpoint.holder import RunInUse
from cavmae_ds.checkpoint.restoring import on_each_rank
from cavmae_ds.checkpoint.run_lock import RunLock
from cavmae_ds.config import CommonConfig
from cavmae_ds.distributed import World
from cavmae_ds.survival.leaving import ExitCode
from cavmae_ds.survival.watch import Watch


@contextmanager
def locked_run(cfg: CommonConfig, world: World, watch: Watch) -> Iterator[None]:
    """Hold the lock of the run folder, on the disk of each host where they share none. All ranks call it.

    Raises CheckpointError, on all ranks, if another process holds one or a folder cannot be written. The run ends with
    REFUSED if a lock is taken over, because this process was stopped for long.
    """

    def lost(error: RunInUse) -> None:
        watch.end_all(str(error), ExitCode.REFUSED)

    disk = find_disk(checkpoint_root(cfg.run_dir), world)
    with ExitStack() as held:
        on_each_rank(lambda: disk.leads and held.callback(RunLock(cfg.run_dir, lost).close))
        yield

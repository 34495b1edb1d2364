"""A run locks its run folder, and its address in a bucket, from before it reads a checkpoint to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.folder import checkpoint_root
from cavmae_ds.checkpoint.holder import RunInUse
from cavmae_ds.checkpoint.lease import Lease
from cavmae_ds.checkpoint.restoring import on_each_rank
from cavmae_ds.checkpoint.run_lock import RunLock
from cavmae_ds.checkpoint.shared_dir import find_disk
from cavmae_ds.distributed.process_group import World
from cavmae_ds.fault_tolerance.exit import ExitCode
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch


@contextmanager
def locked_run(run_dir: Path, address: str, world: World, watch: Watch) -> Iterator[Lease | None]:
    """Hold the lock of the run folder, on the disk of each host where they share none, and seek the bucket's lease.

    address: checkpoint.address, may be empty. All ranks call it; the first one gets the lease, if there is an address.
    Raises CheckpointError, on all ranks, if another process holds a lock, or if a folder or the bucket cannot be used.
    A thread ends the run with REFUSED if another process holds the lease, or took over what this one held, because this
    one was stopped for long.
    """

    def lost(error: RunInUse) -> None:
        watch.end_all(str(error), ExitCode.REFUSED)

    def take() -> Lease | None:
        if disk.leads:
            held.callback(RunLock(run_dir, lost).close)
        if not (world.is_first and address):
            return None
        lease = Lease(open_bucket(address), lost)
        held.callback(lease.close)
        return lease

    disk = find_disk(checkpoint_root(run_dir), world)
    with ExitStack() as held:
        yield on_each_rank(take)

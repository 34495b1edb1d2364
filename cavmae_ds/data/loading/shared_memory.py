"""A name of its own in shared memory for each run, and a lock that shows that the run is alive.

streaming counts its names up (000000_locals, 000001_locals, ...): two runs that start at once take the same number, and
nobody can tell a killed run's leftovers from a living run's. Here a run draws a number, and each of its ranks holds a
lock on a file with that number. The kernel lets go of the lock when the rank and its workers are gone, however they
ended: only then are the names removed.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streaming.base.dataset
from streaming.base.constant import LOCALS
from streaming.base.shared import SharedMemory
from streaming.base.world import World

from cavmae_ds.distributed.collectives import from_first_rank
from cavmae_ds.fault_tolerance.shared_memory_leftovers import FOLDER, remove_leftovers

_LOWEST = 10**15  # 16 digits: streaming's own numbers never come so far


@contextmanager
def own_names() -> Iterator[None]:
    """StreamingDatasets that are built inside take names from claim_number."""
    theirs = streaming.base.dataset.get_shm_prefix
    streaming.base.dataset.get_shm_prefix = claim_number
    try:
        yield
    finally:
        streaming.base.dataset.get_shm_prefix = theirs


def claim_number(
    streams_local: list[str], streams_remote: list[str | None], world: World, retry: int = 0
) -> tuple[int, SharedMemory]:
    """Stands in for streaming's get_shm_prefix: the number before all names of this data set, on this host.

    Called by all ranks together. Any number of runs may share a cache folder: shards are renamed into place whole.
    """
    if world.is_local_leader:
        remove_leftovers()
    number = _LOWEST + secrets.randbelow(9 * _LOWEST)
    if world.num_ranks > 1:
        number = from_first_rank(number)
    held = _hold(FOLDER / f"{number}_owner_{world.rank}")
    atexit.register(_let_go, held)  # before those of the shared memory itself, so it runs after them
    return number, SharedMemory(f"{number}_{LOCALS}", size=4)


def _hold(path: Path) -> int:
    """A descriptor of the owner's file, locked; inherited by the workers. The file says where the lock files are."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:  # else removed before it was locked
            os.pwrite(descriptor, tempfile.gettempdir().encode(), 0)
            return descriptor
        os.close(descriptor)


def _let_go(descriptor: int) -> None:
    os.close(descriptor)
    remove_leftovers()

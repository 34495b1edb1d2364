"""Which checkpoint a run goes on from: the newest whole one, on the disk or in the bucket."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from functools import partial as bound
from pathlib import Path
from threading import Lock
from typing import TypeVar

from cavmae_ds.checkpoint.bucket import Bucket
from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    SET_ASIDE,
    is_whole,
    partial,
    remove_partials,
    step_name,
    step_of,
    verify,
    whole_checkpoints_in,
)
from cavmae_ds.checkpoint.manifest import MANIFEST, DamagedCheckpoint, Manifest
from cavmae_ds.checkpoint.shared_dir import Disk, told_by_first_rank
from cavmae_ds.checkpoint.store import CheckpointStore, FolderStore
from cavmae_ds.distributed.collectives import barrier, from_all_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

_TELL_EVERY_S = 10.0

Found = TypeVar("Found")
FilePath = Callable[[str], Path]
"""Where a file of the checkpoint lies, brought there if need be. Raises DamagedCheckpoint, DataError."""


def restore(
    disk: Disk,
    bucket: Bucket | None,
    world: World,
    fits: Callable[[Manifest, str], None],
    find: Callable[[Manifest, FilePath], Found],
) -> tuple[Manifest, Found] | None:
    """The newest whole checkpoint and what each rank found in it; None if there is none at all. All ranks call it.

    A damaged one is named, set aside, and the one before it taken. fits: raises CheckpointError, alike on all ranks, if
    the checkpoint (manifest, address) is of another run. find: opens the files that this rank needs, without talking to
    other ranks; called again with an older checkpoint if any rank met damage. Raises CheckpointError if all are
    damaged.
    """
    if disk.leads:
        remove_partials(disk.root)
    barrier()
    for step, in_bucket in told_by_first_rank(world, lambda: newest_first(disk, bucket)):
        store = bucket if bucket and in_bucket else FolderStore(disk.root)
        try:
            return _open(step, store, disk, world, fits, find)
        except DamagedCheckpoint as error:
            aside = told_by_first_rank(world, bound(store.set_aside, step))
            if world.is_first:
                log.warning("%s; it is now %s, and the checkpoint before it is taken", error, aside)
    if left := told_by_first_rank(world, lambda: _set_aside_before(disk, bucket)):
        raise CheckpointError(
            f"no checkpoint is whole: {left[-1]} is damaged, and there is none before it; bring back a copy of one, or "
            f"remove what ends in {DAMAGED} to start anew"
        )
    return None


def newest_first(disk: Disk, bucket: Bucket | None) -> list[tuple[int, bool]]:
    """Step and whether it is the copy in the bucket, of all checkpoints."""
    # Hosts with a disk of their own hold parts of checkpoints, which save them fetching these.
    here = [(step_of(folder.name) or 0, False) for folder in whole_checkpoints_in(disk.root) if disk.shared]
    there = [(step, True) for step in (bucket.steps() if bucket else [])]
    return sorted(here + there, key=lambda place: (-place[0], place[1]))


def _set_aside_before(disk: Disk, bucket: Bucket | None) -> list[str]:
    here = sorted(str(folder) for folder in disk.root.glob(f"step-*{DAMAGED}"))
    there = [f"{bucket.address(step)}/{MANIFEST}{DAMAGED}" for step in bucket.steps(SET_ASIDE)] if bucket else []
    return there + here


def _open(
    step: int,
    store: CheckpointStore,
    disk: Disk,
    world: World,
    fits: Callable[[Manifest, str], None],
    find: Callable[[Manifest, FilePath], Found],
) -> tuple[Manifest, Found]:
    """Raises DamagedCheckpoint on all ranks alike."""
    name = step_name(step)
    manifest = told_by_first_rank(world, lambda: store.read_manifest(name))
    fits(manifest, store.address(step))
    if isinstance(store, Bucket):
        told_by_first_rank(world, lambda: store.verify_sizes(name, manifest))
        return manifest, on_each_rank(lambda: find(manifest, _Fetching(store, disk, manifest)))
    on_each_rank(lambda: _verify_share(disk.root / name, manifest, world))
    return manifest, on_each_rank(lambda: find(manifest, (disk.root / name).joinpath))


def on_each_rank(work: Callable[[], Found]) -> Found:
    """What this rank finds; all ranks call it. Raises what the first rank met that met anything, on all ranks."""
    found: list[Found] = []
    problem = None
    try:
        found = [work()]
    except CheckpointError as error:
        problem = error
    except DataError as error:
        problem = CheckpointError(str(error))
    except OSError as error:  # a full disk, no access: nothing is damaged
        problem = CheckpointError(f"{error.filename or 'checkpoint'}: {error.strerror}")
    problems = [met for met in from_all_ranks(problem) if met]
    if problems:
        raise problems[0]
    return found[0]


def _verify_share(folder: Path, manifest: Manifest, world: World) -> None:
    """Hash this rank's share of the files; the first says how far it is when that takes long."""
    told, read, lock = time.monotonic(), 0, Lock()
    mine = slice(world.rank, None, world.size)
    total = sum(record.bytes for _, record in sorted(manifest.files.items())[mine])

    def progress(count: int) -> None:
        nonlocal told, read
        with lock:
            read += count
            if world.is_first and time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                log.info("checking %s: %.1f of %.1f GB of the first rank's share", folder, read / 1e9, total / 1e9)

    verify(folder, manifest, mine, progress)


class _Fetching:
    """Brings files of a checkpoint from the bucket, for all ranks of this host once, and checks them."""

    def __init__(self, bucket: Bucket, disk: Disk, manifest: Manifest):
        self._bucket, self._root, self._manifest = bucket, disk.root, manifest

    def __call__(self, name: str) -> Path:
        record, checkpoint = self._manifest.files[name], step_name(self._manifest.step)
        kept, folder = self._root / checkpoint / name, partial(self._root, self._manifest.step)
        if is_whole(kept, record):
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # goes when the file is closed, also by a kill
            if not path.is_file():
                arriving = path.with_suffix(".arriving")
                self._bucket.fetch(checkpoint, name, record, arriving)
                arriving.rename(path)
        return path

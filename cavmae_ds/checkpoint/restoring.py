"""Which checkpoint a run goes on from: the newest whole one, on the disk or in the bucket."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

from cavmae_ds.checkpoint.bucket import Bucket
from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    MANIFEST,
    DamagedCheckpoint,
    Manifest,
    is_whole,
    partial,
    read_manifest,
    remove_partials,
    set_aside,
    step_name,
    step_of,
    verify,
    whole_checkpoints_in,
)
from cavmae_ds.checkpoint.shared_dir import Disk, told_by_first_rank
from cavmae_ds.distributed.collectives import barrier, from_all_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

_TELL_EVERY_S = 10.0

Found = TypeVar("Found")
FilePath = Callable[[str], Path]
"""Where a file of the checkpoint lies, brought there if need be. Raises DamagedCheckpoint, DataError."""


class _Place(NamedTuple):
    """Where a checkpoint is: in the bucket, or (None) on the disk."""

    step: int
    disk: Disk
    bucket: Bucket | None

    @property
    def folder(self) -> Path:
        return self.disk.root / step_name(self.step)

    @property
    def address(self) -> str:
        return self.bucket.address(self.step) if self.bucket else str(self.folder)

    def read_manifest(self) -> Manifest:
        return self.bucket.read_manifest(self.step) if self.bucket else read_manifest(self.folder)

    def set_aside(self) -> str:
        return self.bucket.set_aside(self.step) if self.bucket else str(set_aside(self.folder))


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
        place = _Place(step, disk, bucket if in_bucket else None)
        try:
            return _open(place, world, fits, find)
        except DamagedCheckpoint as error:
            aside = told_by_first_rank(world, place.set_aside)
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
    there = [f"{bucket.address(step)}/{MANIFEST}{DAMAGED}" for step in bucket.damaged()] if bucket else []
    return there + here


def _open(
    place: _Place,
    world: World,
    fits: Callable[[Manifest, str], None],
    find: Callable[[Manifest, FilePath], Found],
) -> tuple[Manifest, Found]:
    """Raises DamagedCheckpoint on all ranks alike."""
    manifest = told_by_first_rank(world, place.read_manifest)
    fits(manifest, place.address)
    if bucket := place.bucket:
        told_by_first_rank(world, lambda: bucket.verify_sizes(manifest))
        return manifest, on_each_rank(lambda: find(manifest, _Fetching(place, manifest)))
    on_each_rank(lambda: _verify_share(place.folder, manifest, world))
    return manifest, on_each_rank(lambda: find(manifest, place.folder.joinpath))


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

    def __init__(self, place: _Place, manifest: Manifest):
        self._place, self._manifest = place, manifest

    def __call__(self, name: str) -> Path:
        record, bucket = self._manifest.files[name], self._place.bucket
        kept, folder = self._place.folder / name, partial(self._place.disk.root, self._place.step)
        if bucket is None or is_whole(kept, record):
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # goes when the file is closed, also by a kill
            if not path.is_file():
                arriving = path.with_suffix(".arriving")
                bucket.fetch(self._place.step, name, record, arriving)
                arriving.rename(path)
        return path

"""The checkpoints of a run seen from outside, by one process: in a folder or in a bucket, whole or not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cavmae_ds.checkpoint.bucket import Bucket, open_bucket
from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    MANIFEST,
    PARTIAL,
    Manifest,
    checkpoint_root,
    read_manifest,
    size_of,
    step_name,
    step_of,
    verify,
    verify_sizes,
)
from cavmae_ds.checkpoint.manifest_file import manifest_bytes
from cavmae_ds.checkpoint.retention import Retention, thin_out
from cavmae_ds.errors import CheckpointError
from cavmae_ds.terminal import available_cores

WHOLE, SET_ASIDE, UNFINISHED = "whole", "set aside", "unfinished"

Read = Callable[[int], None]
"""Told the bytes of each piece that is read, by any thread."""


class Entry(NamedTuple):
    """One checkpoint, or what was to be one."""

    name: str
    """step-00000120, perhaps with an ending."""
    condition: str
    """WHOLE, SET_ASIDE, UNFINISHED, or the sentence that says what is damaged."""
    manifest: Manifest | None = None
    written: float = 0.0
    """When it was finished, seconds since 1970."""

    @property
    def is_damaged(self) -> bool:
        """It should be whole."""
        return self.condition not in (WHOLE, SET_ASIDE, UNFINISHED)


class FolderShelf:
    """Checkpoints on a disk."""

    def __init__(self, root: Path):
        self.address = str(root)
        self._root = root

    def entries(self) -> list[Entry]:
        """All there are, by name."""
        return [self.entry(folder.name) for folder in sorted(self._root.glob("step-*"))]

    def entry(self, name: str) -> Entry:
        """One of them, of which the manifest and the sizes of files are read."""
        folder, manifest = self._root / name, None
        if name.endswith(DAMAGED):
            return Entry(name, SET_ASIDE)
        if name.endswith(PARTIAL) or not (folder / MANIFEST).is_file():
            return Entry(name, UNFINISHED)
        try:
            manifest = read_manifest(folder)
            verify_sizes(manifest, {file: size_of(folder / file) for file in manifest.files}, str(folder))
            condition = WHOLE
        except CheckpointError as error:
            condition = str(error)
        return Entry(name, condition, manifest, (folder / MANIFEST).stat().st_mtime)

    def verify(self, name: str, manifest: Manifest, read: Read) -> None:
        """Read every file. Raises DamagedCheckpoint naming one that is not what was written."""
        verify(self._root / name, manifest, slice(None), read, available_cores())

    @contextmanager
    def opened(self, name: str, manifest: Manifest, read: Read) -> Iterator[Path]:
        """A folder with its files, read and found whole. Raises DamagedCheckpoint."""
        self.verify(name, manifest, read)
        yield self._root / name

    def prune(self, keep: Retention) -> None:
        """Remove what is superseded."""
        thin_out(self._root, keep)


class BucketShelf:
    """Checkpoints in a bucket. All methods raise DataError where it does not answer."""

    def __init__(self, bucket: Bucket):
        self.address = bucket.url
        self._bucket = bucket

    def entries(self) -> list[Entry]:
        """All there are, by name."""
        whole = [self.entry(step_name(step)) for step in self._bucket.steps()]
        aside = [Entry(step_name(step), SET_ASIDE) for step in self._bucket.damaged()]
        half = [Entry(step_name(step), UNFINISHED) for step in self._bucket.half_sent()]
        return sorted(whole + aside + half, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry:
        """One of the whole ones, of which the manifest and the sizes of files are read."""
        step, manifest = step_of(name) or 0, None
        try:
            manifest = self._bucket.read_manifest(step)
            self._bucket.verify_sizes(manifest)
            condition = WHOLE
        except CheckpointError as error:
            condition = str(error)
        return Entry(name, condition, manifest, self._bucket.written(step))

    def verify(self, name: str, manifest: Manifest, read: Read) -> None:
        """Read every file. Raises DamagedCheckpoint naming one that is not what was written."""
        self._bucket.verify(manifest, read)

    @contextmanager
    def opened(self, name: str, manifest: Manifest, read: Read) -> Iterator[Path]:
        """A temporary folder with its files, found whole. Raises DamagedCheckpoint."""
        with tempfile.TemporaryDirectory(prefix="cavmae-checkpoint-") as temporary:
            folder = Path(temporary)
            for file, record in manifest.files.items():
                self._bucket.fetch(manifest.step, file, record, folder / file)
                read(record.bytes)
            (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
            yield folder

    def prune(self, keep: Retention) -> None:
        """Remove what is superseded."""
        self._bucket.thin_out(keep, newest=0)


Shelf = FolderShelf | BucketShelf


def superseded(entries: Sequence[Entry], keep: Retention) -> list[Entry]:
    """Finished checkpoints that prune() removes."""
    finished = {step: entry for entry in entries if entry.written and (step := step_of(entry.name)) is not None}
    return [finished[step] for step in keep.superseded(list(finished))]


def open_shelf(address: str) -> tuple[Shelf, str]:
    """The checkpoints of a run folder, a folder of checkpoints or s3://bucket/prefix; of one of them also its name.

    Raises CheckpointError if there is nothing of the kind, DataError for a bucket that cannot be used.
    """
    nothing = CheckpointError(
        f"{address!r} holds no checkpoint; give a run folder, one checkpoint of it, or s3://bucket/prefix of either"
    )
    if "://" in address:
        prefix, _, last = address.rstrip("/").rpartition("/")
        step = step_of(last)
        bucket = open_bucket(address if step is None else prefix)
        if not bucket.names("step-") or (step is not None and step not in bucket.steps()):
            raise nothing
        return BucketShelf(bucket), "" if step is None else last
    path = Path(address)
    if (path / MANIFEST).is_file():
        return FolderShelf(path.absolute().parent), path.absolute().name
    for root in (checkpoint_root(path), path):
        if any(root.glob("step-*")):
            return FolderShelf(root), ""
    raise nothing

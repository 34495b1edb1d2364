"""The checkpoints of a run seen from outside, by one process: in a folder or in a bucket, whole or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cavmae_ds.checkpoint.bucket import Bucket, open_bucket
from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    PARTIAL,
    SET_ASIDE,
    UNFINISHED,
    WHOLE,
    Read,
    checkpoint_root,
    read_manifest,
    set_aside,
    size_of,
    step_name,
    step_of,
    verify,
    verify_sizes,
)
from cavmae_ds.checkpoint.manifest import MANIFEST, Manifest
from cavmae_ds.checkpoint.retention import Retention, thin_out
from cavmae_ds.errors import CheckpointError
from cavmae_ds.terminal import available_cores


class FolderStore:
    """Checkpoints on a disk, each by its folder's name; Bucket has the same methods."""

    def __init__(self, root: Path):
        self.url = str(root)
        self._root = root

    def address(self, step: int) -> str:
        """What a checkpoint is called in a sentence."""
        return str(self._root / step_name(step))

    def conditions(self) -> list[tuple[str, str]]:
        """Name and WHOLE, SET_ASIDE or UNFINISHED of all there are, by name; nothing is read."""
        return [(folder.name, self.condition(folder.name)) for folder in sorted(self._root.glob("step-*"))]

    def condition(self, name: str) -> str:
        """Of one of them."""
        if name.endswith(DAMAGED):
            return SET_ASIDE
        unfinished = name.endswith(PARTIAL) or not (self._root / name / MANIFEST).is_file()
        return UNFINISHED if unfinished else WHOLE

    def read_manifest(self, name: str) -> Manifest:
        """See folder.read_manifest for the errors."""
        return read_manifest(self._root / name)

    def verify_sizes(self, name: str, manifest: Manifest) -> None:
        """Raises DamagedCheckpoint naming a file that is missing or of another size."""
        folder = self._root / name
        verify_sizes(manifest, {file: size_of(folder / file) for file in manifest.files}, str(folder))

    def verify(self, name: str, manifest: Manifest, read: Read) -> None:
        """Read every file. Raises DamagedCheckpoint naming one that is not what was written."""
        verify(self._root / name, manifest, slice(None), read, available_cores())

    def written(self, name: str) -> float:
        """When it was finished, seconds since 1970."""
        return (self._root / name / MANIFEST).stat().st_mtime

    @contextmanager
    def opened(self, name: str, manifest: Manifest, read: Read) -> Iterator[Path]:
        """A folder with its files, read and found whole. Raises DamagedCheckpoint."""
        self.verify(name, manifest, read)
        yield self._root / name

    def set_aside(self, step: int) -> str:
        """Take a damaged checkpoint out of the count, all of it left to be looked at; where it is now."""
        return str(set_aside(self._root / step_name(step)))

    def prune(self, keep: Retention) -> None:
        """Remove what is superseded."""
        thin_out(self._root, keep)


CheckpointStore = FolderStore | Bucket


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


def entries(store: CheckpointStore, name: str = "") -> list[Entry]:
    """All there are, by name, or only one of them. Manifests and the sizes of files are read."""
    found = [(name, store.condition(name))] if name else store.conditions()
    return [_entry(store, *one) for one in found]


def _entry(store: CheckpointStore, name: str, condition: str) -> Entry:
    if condition != WHOLE:
        return Entry(name, condition)
    manifest = None
    try:
        manifest = store.read_manifest(name)
        store.verify_sizes(name, manifest)
    except CheckpointError as error:
        condition = str(error)
    return Entry(name, condition, manifest, store.written(name))


def superseded(found: Sequence[Entry], keep: Retention) -> list[Entry]:
    """Finished checkpoints that prune() removes."""
    finished = {step: entry for entry in found if entry.written and (step := step_of(entry.name)) is not None}
    return [finished[step] for step in keep.superseded(list(finished))]


def open_checkpoints(address: str) -> tuple[CheckpointStore, str]:
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
        return bucket, "" if step is None else last
    path = Path(address)
    if (path / MANIFEST).is_file():
        return FolderStore(path.absolute().parent), path.absolute().name
    for root in (checkpoint_root(path), path):
        if any(root.glob("step-*")):
            return FolderStore(root), ""
    raise nothing

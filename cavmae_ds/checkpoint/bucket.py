"""Checkpoints in a bucket: `s3://bucket/prefix/step-00000120/`, whole when its manifest is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    READ_BYTES,
    SET_ASIDE,
    UNFINISHED,
    WHOLE,
    Read,
    is_whole,
    step_name,
    step_of,
    verify_sizes,
)
from cavmae_ds.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    manifest_bytes,
    parse_manifest,
)
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.data.storage import S3Store, bucket_and_prefix
from cavmae_ds.errors import DataError
from cavmae_ds.retry import call_with_retries

PATIENCE_S = 300.0
"""So long a start waits for a bucket that does not answer."""

Result = TypeVar("Result")


class Bucket(S3Store):
    """The checkpoints below one prefix. All methods raise DataError; endpoint and credentials as for data."""

    before_change: Callable[[], object] = staticmethod(lambda: None)
    """Called before each change; it may wait, or raise a UserError. In a run it is Lease.confirm, on the first rank."""

    def address(self, step: int) -> str:
        """What a checkpoint is called in a sentence."""
        return f"{self.url}/{step_name(step)}"

    def conditions(self) -> list[tuple[str, str]]:
        """Name and WHOLE, SET_ASIDE or UNFINISHED of all there are, by step; one sent again is listed twice."""
        files: dict[int, set[str]] = {}
        for name in self.names("step-"):
            folder, _, file = name.partition("/")
            if (step := step_of(folder)) is not None:
                files.setdefault(step, set()).add(file)
        found = []
        for step, names in sorted(files.items()):
            manifests = [kind for name, kind in ((MANIFEST, WHOLE), (MANIFEST + DAMAGED, SET_ASIDE)) if name in names]
            found += [(step_name(step), kind) for kind in manifests or [UNFINISHED]]
        return found

    def condition(self, name: str) -> str:
        """Of one of them."""
        return dict(reversed(self.conditions()))[name]

    def steps(self, condition: str = WHOLE) -> list[int]:
        """Those in this condition, in order."""
        return [step_of(name) or 0 for name, kind in self.conditions() if kind == condition]

    def read_manifest(self, name: str) -> Manifest:
        """See folder.read_manifest for further errors."""
        return parse_manifest(self.get_bytes(f"{name}/{MANIFEST}"), f"{self.url}/{name}", step_of(name))

    def verify_sizes(self, name: str, manifest: Manifest) -> None:
        """Raises DamagedCheckpoint naming a file that is missing or of another size."""
        there = self.sizes(f"{name}/")
        verify_sizes(manifest, {file: there.get(f"{name}/{file}") for file in manifest.files}, f"{self.url}/{name}")

    def verify(self, name: str, manifest: Manifest, read: Read) -> None:
        """Read every file; `read` is told the bytes of each piece. Raises DamagedCheckpoint naming the file."""
        self.verify_sizes(name, manifest)
        for file, record in sorted(manifest.files.items()):
            digest = sha256()
            for piece in self.pieces(f"{name}/{file}", READ_BYTES):
                digest.update(piece)
                read(len(piece))
            if digest.hexdigest() != record.sha256:
                raise self._changed(name, file)

    def _changed(self, name: str, file: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"checkpoint {f'{self.url}/{name}'!r} is damaged: {file} is not what was written")

    def written(self, name: str) -> float:
        """When a whole checkpoint was finished, seconds since 1970."""
        return self.modified(f"{name}/{MANIFEST}")

    def fetch(self, name: str, file: str, record: FileRecord, path: Path) -> None:
        """One file of a checkpoint, patiently. Raises DamagedCheckpoint if it is not what was written."""
        patiently(lambda: self.download(f"{name}/{file}", path), f"fetching {self.url}/{name}/{file}")
        if not is_whole(path, record):
            path.unlink()
            raise self._changed(name, file)

    @contextmanager
    def opened(self, name: str, manifest: Manifest, read: Read) -> Iterator[Path]:
        """A temporary folder with the files of a checkpoint, found whole. Raises DamagedCheckpoint."""
        with tempfile.TemporaryDirectory(prefix="cavmae-checkpoint-") as temporary:
            folder = Path(temporary)
            for file, record in manifest.files.items():
                self.fetch(name, file, record, folder / file)
                read(record.bytes)
            (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
            yield folder

    def put(self, step: int, path: Path) -> None:
        """One file of a checkpoint that is not whole yet; the file stays."""
        self.before_change()
        self.upload(f"{step_name(step)}/{path.name}", path)

    def publish(self, manifest: Manifest) -> None:
        """Make a checkpoint of the files that were put."""
        name = step_name(manifest.step)
        self.verify_sizes(name, manifest)
        self.before_change()
        self.put_bytes(f"{name}/{MANIFEST}", manifest_bytes(manifest))

    def withdraw(self, step: int) -> None:
        """Make it no checkpoint any more; its files stay."""
        self.before_change()
        self.remove(f"{step_name(step)}/{MANIFEST}")

    def set_aside(self, step: int) -> str:
        """Take a damaged checkpoint out of the count, its files left to be looked at; what its manifest is called."""
        name = f"{step_name(step)}/{MANIFEST}"
        self.before_change()
        self.put_bytes(name + DAMAGED, self.get_bytes(name))
        self.withdraw(step)
        return f"{self.url}/{name}{DAMAGED}"

    def prune(self, keep: Retention, newest: int = 0) -> list[int]:
        """Remove whole checkpoints that are superseded, and what was left half sent before `newest`; what is gone."""
        gone = keep.superseded(self.steps()) + [step for step in self.steps(UNFINISHED) if step < newest]
        for step in gone:
            self.withdraw(step)  # first the manifest: whatever a kill leaves is no checkpoint
            self.remove_all(f"{step_name(step)}/")
        return gone


def open_bucket(address: str) -> Bucket:
    """The bucket at s3://bucket/prefix. Raises DataError if it cannot be used."""
    bucket, prefix = bucket_and_prefix(address)
    return patiently(lambda: Bucket(bucket, prefix), f"opening {address}")


def patiently(work: Callable[[], Result], what: str) -> Result:
    """Try again after longer and longer pauses while the bucket does not answer. Raises the last DataError."""
    return call_with_retries(work, what, limit_s=PATIENCE_S, catch=DataError)

"""Checkpoints in a bucket: `s3://bucket/prefix/step-00000120/`, whole when its manifest is there."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cavmae_ds.checkpoint.folder import (
    DAMAGED,
    MANIFEST,
    READ_BYTES,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    is_whole,
    parse_manifest,
    step_name,
    step_of,
    verify_sizes,
)
from cavmae_ds.checkpoint.manifest_file import manifest_bytes
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.data.storage import S3Store, bucket_and_prefix, transfer_config
from cavmae_ds.errors import DataError
from cavmae_ds.retry import call_with_retries

PATIENCE_S = 300.0
"""So long a start waits for a bucket that does not answer."""
_OBJECTS_AT_ONCE = 1000  # that S3 removes in one request

Result = TypeVar("Result")


class Bucket(S3Store):
    """The checkpoints below one prefix. All methods raise DataError; endpoint and credentials as for data."""

    before_change: Callable[[], object] = staticmethod(lambda: None)
    """Called before each change; it may wait, or raise a UserError. In a run it is Lease.confirm, on the first rank."""

    def steps(self) -> list[int]:
        """Whole checkpoints, in order."""
        return [step for step, files in self._files().items() if MANIFEST in files]

    def damaged(self) -> list[int]:
        """Those that were set aside, in order."""
        return [step for step, files in self._files().items() if MANIFEST + DAMAGED in files]

    def half_sent(self) -> list[int]:
        """Those without a manifest of either kind, in order."""
        return [step for step, files in self._files().items() if not {MANIFEST, MANIFEST + DAMAGED} & files]

    def thin_out(self, keep: Retention, newest: int) -> list[int]:
        """Remove whole checkpoints that are superseded, and what was left half sent before `newest`; what is gone."""
        gone = keep.superseded(self.steps()) + [step for step in self.half_sent() if step < newest]
        for step in gone:
            self._remove(step)
        return gone

    def _files(self) -> dict[int, set[str]]:
        files: dict[int, set[str]] = {}
        for name in self.names("step-"):
            folder, _, file = name.partition("/")
            if (step := step_of(folder)) is not None:
                files.setdefault(step, set()).add(file)
        return dict(sorted(files.items()))

    def address(self, step: int) -> str:
        """What a checkpoint is called in a sentence."""
        return f"{self.url}/{step_name(step)}"

    def read_manifest(self, step: int) -> Manifest:
        """See folder.read_manifest for further errors."""
        return parse_manifest(self.get_bytes(f"{step_name(step)}/{MANIFEST}"), self.address(step), step)

    def put(self, step: int, path: Path) -> None:
        """One file of a checkpoint that is not whole yet; the file stays."""
        name = f"{step_name(step)}/{path.name}"
        self.before_change()
        with self._plain_errors(name):
            self._client.upload_file(str(path), self.bucket, self._key(name), Config=transfer_config())

    def publish(self, manifest: Manifest) -> None:
        """Make a checkpoint of the files that were put."""
        self.verify_sizes(manifest)
        self.before_change()
        self.put_bytes(f"{step_name(manifest.step)}/{MANIFEST}", manifest_bytes(manifest))

    def verify_sizes(self, manifest: Manifest) -> None:
        """Raises DamagedCheckpoint naming a file that is missing or of another size."""
        prefix = f"{step_name(manifest.step)}/"
        there = self.sizes(prefix)
        sizes = {name: there.get(prefix + name) for name in manifest.files}
        verify_sizes(manifest, sizes, self.address(manifest.step))

    def verify(self, manifest: Manifest, read: Callable[[int], None]) -> None:
        """Read every file; `read` is told the bytes of each piece. Raises DamagedCheckpoint naming the file."""
        self.verify_sizes(manifest)
        for name, record in sorted(manifest.files.items()):
            key = f"{step_name(manifest.step)}/{name}"
            digest = sha256()
            with self._plain_errors(key):
                body = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
                for piece in body.iter_chunks(READ_BYTES):
                    digest.update(piece)
                    read(len(piece))
            if digest.hexdigest() != record.sha256:
                raise self._changed(manifest.step, name)

    def _changed(self, step: int, name: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"checkpoint {self.address(step)!r} is damaged: {name} is not what was written")

    def written(self, step: int) -> float:
        """When a whole checkpoint was finished, seconds since 1970."""
        name = f"{step_name(step)}/{MANIFEST}"
        with self._plain_errors(name):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(name))["LastModified"].timestamp()

    def withdraw(self, step: int) -> None:
        """Make it no checkpoint any more; its files stay."""
        name = f"{step_name(step)}/{MANIFEST}"
        self.before_change()
        with self._plain_errors(name):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def set_aside(self, step: int) -> str:
        """Take a damaged checkpoint out of the count, its files left to be looked at; what its manifest is called."""
        name = f"{step_name(step)}/{MANIFEST}"
        self.before_change()
        self.put_bytes(name + DAMAGED, self.get_bytes(name))
        self.withdraw(step)
        return f"{self.url}/{name}{DAMAGED}"

    def _remove(self, step: int) -> None:
        """First the manifest: whatever a kill leaves is no checkpoint."""
        self.withdraw(step)
        names = self.names(f"{step_name(step)}/")
        for some in (names[start : start + _OBJECTS_AT_ONCE] for start in range(0, len(names), _OBJECTS_AT_ONCE)):
            with self._plain_errors():
                keys = [{"Key": self._key(name)} for name in some]
                self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})

    def fetch(self, step: int, name: str, record: FileRecord, path: Path) -> None:
        """One file of a checkpoint, patiently. Raises DamagedCheckpoint if it is not what was written."""
        key = f"{step_name(step)}/{name}"

        def download() -> None:
            with self._plain_errors(key):
                self._client.download_file(self.bucket, self._key(key), str(path), Config=transfer_config())

        patiently(download, f"fetching {self.url}/{key}")
        if not is_whole(path, record):
            path.unlink()
            raise self._changed(step, name)


def open_bucket(address: str) -> Bucket:
    """The bucket at s3://bucket/prefix. Raises DataError if it cannot be used."""
    bucket, prefix = bucket_and_prefix(address)
    return patiently(lambda: Bucket(bucket, prefix), f"opening {address}")


def patiently(work: Callable[[], Result], what: str) -> Result:
    """Try again after longer and longer pauses while the bucket does not answer. Raises the last DataError."""
    return call_with_retries(work, what, limit_s=PATIENCE_S, catch=DataError)

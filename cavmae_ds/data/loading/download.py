"""A shard comes here whole and as it was written, or it is said why not.

streaming's own fetching checks a hash only right after a download and leaves the damaged file behind, and takes two
attempts (spec/data-path.md 6, faults 1 and 2).
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.hashing import get_hash
from streaming.base.world import World

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.index import INDEX, read_index
from cavmae_ds.data.format.schema import Damage
from cavmae_ds.data.storage import bucket_and_prefix, open_store, s3_client, transfer_config
from cavmae_ds.errors import DataError
from cavmae_ds.retry import call_with_retries

log = logging.getLogger(__name__)

HASH = "xxh3_64"
PART, LEFTOVER_AGE_S = ".part", 6 * 3600.0


class ShardError(DataError):
    """A shard is missing or cannot be fetched: nothing stands in for that."""


class BadShard(DataError):
    """A shard is there but not what was written, also when fetched again."""

    damage = Damage.SHARD


class ShardStream(Stream):
    """The shards of one address: a local folder is read in place, a bucket is fetched into the cache."""

    def __init__(self, address: str, data: DataConfig):
        """Raises DataError if the cache would be a folder of somebody else."""
        fetched = "://" in address
        if fetched and data.cache is None:
            make_private(cache_folder(address, None))
        local = str(cache_folder(address, data.cache)) if fetched else address
        super().__init__(remote=address if fetched else None, local=local)
        self.address = address
        self._data = data
        self._client: Any = None

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Readers of all shards by the index as it is now: one left in the cache may be older than the bucket."""
        index = open_store(self.address, self._data.answer_timeout_s).get_bytes(INDEX)
        read_index(index, self.address)  # streaming would end in a traceback
        if self.remote:
            _write_whole(Path(self.local, INDEX), lambda part: part.write_bytes(index))
            if world.is_local_leader:
                remove_leftovers(Path(self.local))
        return super().get_shards(world, allow_unsafe_types)

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Called by StreamingDataset for what is in the cache already; a folder that is read in place is no cache."""
        if self.remote:
            super().set_up_local(shards, cache_usage_per_shard)

    def bring(self, shard: Reader) -> None:
        """Make sure that a shard is here and whole.

        Raises BadShard if it is damaged and fetching it again did not help, ShardError if it cannot be had or the index
        is not of it.
        """
        info = _info(shard)
        path = Path(self.local, info.basename)
        self._bring_file(info, path)
        with path.open("rb") as file:
            samples = int.from_bytes(file.read(4), "little")  # the head of an MDS file
        if samples != shard.samples:
            raise ShardError(
                f"shard {info.basename!r} of {self.address!r} holds {samples} clips, {INDEX} says {shard.samples}; "
                "prepare this data set again"
            )

    def _bring_file(self, info: FileInfo, path: Path) -> None:
        fault = _fault(path, info) if path.is_file() else ""
        if fault is None:
            return
        name = f"shard {info.basename!r} of {self.address!r}"
        if not self.remote:
            if fault:
                raise BadShard(f"{name} is damaged ({fault})")
            raise ShardError(f"{name} could not be read: it is not there; prepare this data set again")
        if fault:
            log.warning("%s is damaged in the cache (%s) and is fetched again", name, fault)
        for _ in range(2):
            fault = self._fetch(info, path)
            if fault is None:
                return
        with suppress(FileNotFoundError):
            path.unlink()
        raise BadShard(f"{name} is damaged ({fault}), also when fetched again")

    def _fetch(self, info: FileInfo, path: Path) -> str | None:
        """Download a shard; under its own name only if it is whole. Returns what is wrong with it, or None."""
        fault: str | None = None

        def download(part: Path) -> bool:
            nonlocal fault
            self._download(info.basename, part)
            fault = _fault(part, info)
            return fault is None

        _write_whole(path, download)
        return fault

    def _download(self, name: str, part: Path) -> None:
        """One object to a file, patiently. Raises ShardError with the last cause when patience is at its end."""

        def once() -> None:
            try:
                self._download_once(name, part)
            except Exception:
                self._client = None
                raise

        def explained(error: Exception, attempts: int, spent_s: float) -> ShardError:
            url = f"{self.address.rstrip('/')}/{name}"
            return ShardError(f"{url} could not be fetched in {attempts} attempts and {spent_s:.0f} s: {error}")

        call_with_retries(
            once, f"fetching {name}", limit_s=self._data.download_timeout_seconds,
            attempts=self._data.download_retries + 1, explained=explained,
        )  # fmt: skip

    def _download_once(self, name: str, part: Path) -> None:
        patience_s = self._data.answer_timeout_s
        client = self._client  # another thread may give it up meanwhile
        if client is None:  # made where it is used: it would not survive a fork
            client = s3_client(connect_timeout_s=patience_s, answer_timeout_s=patience_s, attempts=1)
            self._client = client
        bucket, prefix = bucket_and_prefix(self.address)
        with part.open("wb") as file:
            client.download_fileobj(bucket, f"{prefix}/{name}".lstrip("/"), file, Config=transfer_config())


def cache_folder(address: str, cache: Path | None) -> Path:
    """Where the shards of a bucket are kept: a folder of the address's own in the chosen cache or the temporary folder.

    Evaluation must never find the training set's shards.
    """
    own = f"cavmae-shards-{sha256(address.encode()).hexdigest()[:16]}"
    return (cache or Path(tempfile.gettempdir())) / own


def make_private(folder: Path) -> None:
    """A folder that no other user reads or writes, in one where anybody may make folders of any name.

    Raises DataError if there is something else of that name: a link, or what another user owns.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            folder.chmod(0o700)  # made by an earlier version, for all to read
            return
        found = "is a link" if stat.S_ISLNK(status.st_mode) else f"belongs to the user with id {status.st_uid}"
    except FileExistsError:
        found = "is no folder"
    except OSError as error:
        found = f"cannot be made ({error.strerror})"
    raise DataError(
        f"the folder {folder} for cached shards {found}, it must be a folder of this user's own; remove it, or set "
        "data.cache"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove downloads that a killed process began: those untouched for longer than any attempt may take."""
    for part in folder.rglob(f".*{PART}"):
        with suppress(OSError):  # just removed, or another user's in a cache that is shared
            if time.time() - part.stat().st_mtime > LEFTOVER_AGE_S:
                part.unlink()


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`; it takes the name of `path` unless `write` returned False or raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PART}")
    try:
        if write(part) is not False:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fault(path: Path, info: FileInfo) -> str | None:
    """What is wrong with a shard file, or None."""
    if HASH not in info.hashes:
        return f"index.json has no {HASH} hash of it"
    size = path.stat().st_size
    if size != info.bytes:
        return f"it is {size} bytes long, not {info.bytes}"
    if get_hash(HASH, path.read_bytes()) != info.hashes[HASH]:
        return "its content does not have the hash it was written with"
    return None


def _info(shard: Reader) -> FileInfo:
    return shard.file_pairs[0][0]

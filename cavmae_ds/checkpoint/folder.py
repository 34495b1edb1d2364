"""A checkpoint as a folder: its name, its manifest, whether it is whole.

`step-00000120` holds a file of every rank and a manifest with the size and hash of each. It is written as
`step-00000120.partial` and renamed when all of it is on the disk; one found damaged becomes `step-00000120.damaged`.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cavmae_ds.atomic_io import flush
from cavmae_ds.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    manifest_bytes,
    parse_manifest,
)
from cavmae_ds.errors import CheckpointError

PARTIAL, DAMAGED = ".partial", ".damaged"
WHOLE, SET_ASIDE, UNFINISHED = "whole", "set aside", "unfinished"

Read = Callable[[int], None]
"""Told the bytes of each piece that is read, by any thread."""

_STEP = re.compile(r"step-(\d{8,})")
READ_BYTES = 1 << 20


def checkpoint_root(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first; whether their files are still what was written, verify() says."""
    return whole_checkpoints_in(checkpoint_root(run_dir))


def whole_checkpoints_in(root: Path) -> list[Path]:
    """The same of any folder of checkpoints."""
    whole = (
        folder for folder in root.glob("step-*") if step_of(folder.name) is not None and (folder / MANIFEST).is_file()
    )
    return sorted(whole, key=lambda folder: int(step_of(folder.name) or 0))


def step_name(step: int) -> str:
    """The folder's name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a finished checkpoint's name; None for all other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished checkpoint.

    Raises DamagedCheckpoint if it is not what was written, CheckpointError if it is another version's or may not be
    read.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise unreadable(folder, MANIFEST, error) from error
    return parse_manifest(content, str(folder), step_of(folder.name))


def file_hash(path: Path, read: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file's content; `read` is told the bytes of every piece."""
    digest, buffer = sha256(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            read(count)
    return digest.hexdigest()


def is_whole(path: Path, record: FileRecord, read: Callable[[int], None] = lambda _: None) -> bool:
    """Whether a file is what was written."""
    return size_of(path) == record.bytes and file_hash(path, read) == record.sha256


def verify_sizes(manifest: Manifest, sizes: Mapping[str, int | None], address: str) -> None:
    """Compare the sizes of files, None where one is missing. Raises DamagedCheckpoint naming the first that differs."""
    for name, size in sorted(sizes.items()):
        if size != manifest.files[name].bytes:
            what = "is missing" if size is None else f"is {size} bytes long, not {manifest.files[name].bytes}"
            raise DamagedCheckpoint(f"checkpoint {address!r} is damaged: {name} {what}")


def verify(
    folder: Path,
    manifest: Manifest,
    share: slice = slice(None),
    read: Callable[[int], None] = lambda _: None,
    threads: int = 2,
) -> None:
    """Compare a share of the files, in the order of their names, with the manifest: first all sizes, then hashes.

    read: told the bytes of every piece read, by several threads. Raises DamagedCheckpoint naming the file, or
    CheckpointError if it may not be read.
    """
    mine = sorted(manifest.files)[share]
    verify_sizes(manifest, {name: size_of(folder / name) for name in mine}, str(folder))

    def check(name: str) -> None:
        try:
            if not is_whole(folder / name, manifest.files[name], read):
                raise DamagedCheckpoint(f"checkpoint {str(folder)!r} is damaged: {name} is not what was written")
        except OSError as error:
            raise unreadable(folder, name, error) from error

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in [pool.submit(check, name) for name in mine]:
                done.result()
        except CheckpointError:
            pool.shutdown(cancel_futures=True)
            raise


def unreadable(folder: Path, name: str, error: OSError) -> CheckpointError:
    """Damage if the disk has lost it; a refusal, which sets nothing aside, if access to it may come back."""
    if error.errno in (errno.ENOENT, errno.EIO):
        return DamagedCheckpoint(f"checkpoint {str(folder)!r} is damaged: {name}: {error.strerror}")
    return CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {name}: {error.strerror}")


def size_of(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def partial(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is one."""
    return root / f"{step_name(step)}{PARTIAL}"


def commit(folder: Path, manifest: Manifest) -> None:
    """Make a checkpoint of a partial folder whose files are on the disk; an older one of the same step goes."""
    path = folder / MANIFEST
    path.write_bytes(manifest_bytes(manifest))
    for written in (path, folder):
        flush(written)
    final = folder.with_name(step_name(manifest.step))
    older = _renamed(final, PARTIAL) if final.exists() else None
    folder.rename(final)
    flush(final.parent)
    if older:
        shutil.rmtree(older, ignore_errors=True)


def remove_partials(root: Path) -> None:
    """Remove what killed processes were writing, fetching or removing; only for the run that holds the lock."""
    for folder in root.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(folder, ignore_errors=True)  # on NFS a file that is still open leaves another one


def remove(folder: Path) -> None:
    """Rename first: a kill in the middle of deleting must not leave half a checkpoint under a whole one's name."""
    with suppress(FileNotFoundError):  # a run and `cavmae checkpoint prune` may remove the same one
        shutil.rmtree(_renamed(folder, PARTIAL))


def set_aside(folder: Path) -> Path:
    """Take a damaged checkpoint out of the count, all of it left to be looked at; where it is now."""
    aside = _renamed(folder, DAMAGED)
    flush(folder.parent)
    return aside


def _renamed(folder: Path, suffix: str) -> Path:
    """Under a free name that ends in `suffix`."""
    number = 0
    while (target := folder.with_name(f"{folder.name}{f'.{number}' if number else ''}{suffix}")).exists():
        number += 1
    return folder.rename(target)

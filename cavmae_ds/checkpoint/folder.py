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
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints, ValidationError
from pydantic_core import from_json

from cavmae_ds.atomic_io import flush
from cavmae_ds.checkpoint.manifest_file import checked_fields, contradiction, manifest_bytes
from cavmae_ds.errors import CheckpointError, shortened

FORMAT = 3
"""2 had no checksum of the manifest and is still read; 1 was DeepSpeed's own format in a folder with a manifest."""
MANIFEST = "manifest.json"
PARTIAL, DAMAGED = ".partial", ".damaged"
WHOLE, SET_ASIDE, UNFINISHED = "whole", "set aside", "unfinished"

Read = Callable[[int], None]
"""Told the bytes of each piece that is read, by any thread."""

_STEP = re.compile(r"step-(\d{8,})")
READ_BYTES = 1 << 20

# Names come from data: one that could lead out of the folder is not accepted.
FileName = Annotated[str, StringConstraints(pattern=r"^rank-\d{5,}-of-\d{5,}\.safetensors$")]


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was written; the one before it may be."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(_Frozen):
    """What a file must be."""

    bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ParameterRecord(_Frozen):
    """What a parameter of the model is."""

    shape: list[NonNegativeInt]
    dtype: str
    """As torch prints it, without "torch."; a frozen parameter is saved in it, a trained one in float32."""
    trained: bool
    """An optimizer holds it; else it was frozen."""


class Rewind(NamedTuple):
    """Steps whose clips are seen without an update, because the loss rose there: first and last, counted from 1."""

    first: int
    last: int


class Manifest(_Frozen):
    """Everything about a checkpoint but its large tensors."""

    format: PositiveInt = FORMAT
    step: NonNegativeInt
    """Optimizer steps done."""
    clips_seen: NonNegativeInt
    ranks: PositiveInt
    """That wrote it; any other number can read it."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    states: list[str] = []
    """Kinds of values saved of the parameters: master, exp_avg, ema, ..."""
    rewinds: list[Rewind] = []
    """How often the run had gone back, and which steps it left out for that."""
    scalars: dict[str, Any] = {}
    """What the engine and the optimizer hold besides tensors."""
    identity: dict[str, Any] = {}
    """What must be the same for a resume to continue the same run: setting -> value."""
    parameters: dict[str, ParameterRecord] = {}
    config: dict[str, Any] = {}
    """The run's sections, as in its run file."""
    files: dict[FileName, FileRecord] = {}

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(record.bytes for record in self.files.values())

    @property
    def stamp(self) -> str:
        """The same only for checkpoints with the same content."""
        return sha256("".join(sorted(record.sha256 for record in self.files.values())).encode()).hexdigest()


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


def parse_manifest(content: bytes, address: str, step: int | None) -> Manifest:
    """A manifest from its file's content; see read_manifest for the errors. step: of the name, where it has one."""
    try:
        fields, version = checked_fields(from_json(content))
        if version not in (2, FORMAT):
            raise CheckpointError(
                f"checkpoint {address!r} has format {version}, this version of cavmae_ds reads {FORMAT}; go on with "
                "the version that wrote it, or choose another run_dir"
            )
        manifest = Manifest.model_validate(fields)
        problem = contradiction(manifest, step)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f": {shortened(where)}: {shortened(first['msg'])}"
    except ValueError as error:
        problem = f" is no JSON of a manifest ({shortened(str(error))})"
    if problem:
        raise DamagedCheckpoint(f"checkpoint {address!r} is damaged: {MANIFEST}{problem}")
    return manifest


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

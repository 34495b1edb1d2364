"""Writing that survives a power cut and a full disk: a file is there whole or not at all, and a sentence says why."""

from __future__ import annotations

import codecs
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cavmae_ds.errors import ConfigError, DataError, UserError

_REMEDIES = {
    errno.ENOSPC: "free space there or write elsewhere",
    errno.EDQUOT: "free space there, have the quota raised, or write elsewhere",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) or write elsewhere",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "change its permissions or give another path",
    errno.EPERM: "change its permissions or give another path",
    errno.ENOTDIR: "give a path below folders only",
    errno.EISDIR: "give the name of a file",
    errno.EEXIST: "give another name",
    errno.ELOOP: "give a path without a circle of links",
    errno.ENXIO: "give the name of a regular file",
    errno.EIO: "repair the disk or write elsewhere",
}
"""What to do about an error of writing, by errno: all of them are for the user to solve."""


def flush(path: Path) -> None:
    """Make a file's content, or a folder's list of names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a file its name, on the same file system, in place of one that has it: whole, and on the disk at the end."""
    flush(finished)
    finished.replace(path)
    flush(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields the name to write to; the file gets its own name once it is on disk. Folders on the way are made.

    Raises ConfigError where it cannot be written, and leaves nothing of it. What is no regular file (/dev/stdout) is
    written to directly.
    """
    with refusing_to_write(path, errno.ENOENT):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        special = path.exists() and not path.is_file()
        if not special:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not made of the name, which may be as long as names can be; libraries look at the suffix.
            unfinished = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix}")
            unfinished.touch()
    with refusing_to_write(path):
        if special:
            yield path
            return
        try:
            permissions = unfinished.stat().st_mode
            yield unfinished
            unfinished.chmod(permissions)  # safetensors lets nobody else read
            put_in_place(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def refusing_to_write(path: Path | str, *others: int) -> Iterator[None]:
    """What is inside writes `path`. Raises ConfigError naming it where the system does not let it.

    others: further errnos that mean that.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _system_error(error)
        if cause and cause.errno in (*_REMEDIES, *others):
            raise ConfigError(cannot_write(path, cause)) from error
        raise


def make_folder(path: Path, what: str) -> None:
    """Make a folder and those above it, if need be, and try to write in it. Raises ConfigError naming it as `what`."""
    trial = path / f".{os.getpid()}.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{what}: {cannot_write(path, error)}") from error


def cannot_write(path: Path | str, error: OSError | ValueError) -> str:
    """A sentence about a file, its error and what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "give another path")
    return f"cannot write {str(path)!r}: {reason}; {remedy}"


def refusal(error: Exception) -> str | None:
    """The sentence for an error that the user must solve; None for a mistake of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"cannot use {str(error.filename)!r}" if error.filename else "cannot write"
        return f"{where}: {error.strerror}; {_REMEDIES[error.errno]}"
    return None


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind that of a library: safetensors gives its number, others keep it in the chain."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ or error.__context__
    return None


def read_text(path: Path, *, keep_invalid: bool = False) -> str:
    """The text of a UTF-8 file without a byte order mark, its line ends unchanged.

    With `keep_invalid` bytes that are not UTF-8 become surrogates, as in file names (os.fsdecode). Raises DataError for
    a file that cannot be read or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise DataError(f"{path} is no UTF-8 text but UTF-16 or binary; save it as UTF-8")
    try:
        return content.decode("utf-8-sig", "surrogateescape" if keep_invalid else "strict")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1][:80]
        raise DataError(f"{path} line {number} is not UTF-8, got {line!r}; save the file as UTF-8") from error

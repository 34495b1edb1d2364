"""The removal of what killed runs left in shared memory; apart from what makes it, for that takes seconds to import."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
_OWNER = re.compile(r"(\d{16})_owner_\d+")
_LOCKS = ("barrier_filelock", "cache_filelock")  # as streaming.base.constant has them


def remove_leftovers() -> None:
    """Remove the shared memory and lock files of this user's runs of which no process is left.

    Any user may put anything into the folder: only regular files of this user count as owner files.
    """
    owners = defaultdict(list)
    for path in FOLDER.iterdir():
        if (match := _OWNER.fullmatch(path.name)) and _is_own_file(path):
            owners[match[1]].append(path)
    for number, paths in owners.items():
        with suppress(OSError, ValueError):  # alive, just removed, or no path in it
            _remove(number, paths)


def _is_own_file(path: Path) -> bool:
    with suppress(OSError):  # just removed
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
    return False


def _remove(number: str, owners: Sequence[Path]) -> None:
    locks = []
    try:
        for owner in owners:
            # Not blocking: it may have become a FIFO since it was looked at.
            locks.append(os.open(owner, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK))
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = Path(os.pread(locks[0], 4096, 0).decode())
        for name in _LOCKS:
            with suppress(OSError):
                (folder / f"{number}_{name}").unlink()
        for path in FOLDER.glob(f"{number}_*"):
            with suppress(OSError):  # just removed, or a folder of somebody else
                path.unlink()
    finally:
        for lock in locks:
            os.close(lock)

"""What runs that were killed have left: memory in /dev/shm, and locks that the next build would wait for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.fault_tolerance.shared_memory_leftovers import FOLDER

YOUNG_S = 120.0
"""Younger files may belong to a process that has not opened them yet."""
LOCK_AGE_S = 900.0
"""No build of ours takes so long (spec/engine-notes.md 4: two minutes)."""
WORTH_SAYING_BYTES = 16 << 20
_SHOWN = 4


def check_leftovers() -> list[Finding]:
    """Both kinds."""
    return [shared_memory(unused(FOLDER)), stale_locks(extension_folders())]


def unused(folder: Path) -> dict[str, int]:
    """Files of this user that no process has open or mapped, by name, and the bytes they take."""
    used, oldest = _used(folder), time.time() - YOUNG_S
    found = {}
    for path in folder.iterdir():
        with suppress(OSError):  # just removed
            status = path.stat(follow_symlinks=False)
            if status.st_uid == os.getuid() and status.st_mtime < oldest and status.st_ino not in used:
                name = os.fsencode(path.name).decode(errors="backslashreplace")  # it is to be printed
                found[name] = status.st_blocks * 512
    return found


def _used(folder: Path) -> set[int]:
    """Inodes of the folder that processes of this user hold."""
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or another user's
            for line in (process / "maps").read_text(errors="replace").splitlines():
                if f" {folder}/" in line:
                    used.add(int(line.split()[4]))
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if descriptor.readlink().is_relative_to(folder):
                        used.add(descriptor.stat().st_ino)
    return used


def shared_memory(left: dict[str, int]) -> Finding:
    """Other containers may use what nobody here does, so it is for people to remove."""
    if sum(left.values()) < WORTH_SAYING_BYTES:
        return ok("left in /dev/shm", f"{len(left)} files that no process here uses, hardly any memory")
    largest = sorted(left, key=left.__getitem__, reverse=True)
    names = ", ".join(largest[:_SHOWN]) + (f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "")
    return note(
        "left in /dev/shm",
        f"{sum(left.values()) / 2**20:.0f} MiB that no process here uses: {names}",
        "names with 16 digits the next run removes; rm the others in /dev/shm, if no other container has a run",
    )


def extension_folders() -> list[Path]:
    """Where torch and DeepSpeed build C++ at run time."""
    told = os.environ.get("TORCH_EXTENSIONS_DIR")
    return [Path(told)] if told else [Path.home() / ".cache" / "torch_extensions"]


def stale_locks(folders: Iterable[Path]) -> Finding:
    """A build that finds a lock waits until it is gone, which it never is if its owner was killed."""
    oldest, stale = time.time() - LOCK_AGE_S, []
    for path in (path for folder in folders for path in folder.glob("**/lock")):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                stale.append(str(path))
    if not stale:
        return ok("build locks", "no old ones")
    return fix("build locks", f"{len(stale)} of builds that were killed", f"rm {' '.join(stale)}")

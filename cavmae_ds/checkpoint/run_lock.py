"""One process at a time writes into a run folder: it holds a lock on RUN/run.lock for as long as it lives.

The lock is the kernel's, which frees it when the process ends, however that happens; nothing is left to wait for. It is
a POSIX lock (lockf): loader workers, which are forked, do not inherit it as they would that of flock, and outlive a
killed rank by a second. Its price: it goes when this process closes any descriptor of the file.

On a network file system the lock of a host that lost power stays until the server gives that host up (NFSv4: after its
lease of 90 s), and some file systems have no locks. Then the holder's record in the file decides (holder.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cavmae_ds.atomic_io import cannot_write
from cavmae_ds.checkpoint.holder import RENEW_S, Holder, Observation, RunInUse
from cavmae_ds.errors import CheckpointError

LOCK = "run.lock"
"""Of this name are the file in a run folder and the object in a bucket."""
_TRY_S = 0.1
_RECORD_BYTES = 1024
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # its content is replaced: never that of a link's target
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """Held from the moment it is made until close(), or the end of the process."""

    def __init__(self, run_dir: Path, lost: Callable[[RunInUse], object], renew_s: float = RENEW_S):
        """lost: called by a thread if another process took the lock over, because this one was stopped for long.

        The folder is made if need be. Raises RunInUse if another process holds the lock, CheckpointError if the folder
        cannot be written.
        """
        self._me, self._lost, self._renew_s = Holder.me(), lost, renew_s
        self._observation = Observation("run_dir", str(run_dir), renew_s)
        self._path, self._fd = run_dir / LOCK, -1
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, _OPEN, 0o666)
            self._take()
        except OSError as error:
            raise CheckpointError(f"run_dir: {cannot_write(run_dir, error)}") from error
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="run lock", daemon=True)
        self._renewing.start()

    def close(self) -> None:
        """Free the lock."""
        self._stop.set()
        self._renewing.join(self._renew_s)
        if self._renewing.is_alive():  # it waits for a network file system
            return
        with suppress(OSError):
            if self._read() == self._me:
                os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def _take(self) -> None:
        """A lock of the kernel's decides at once; one that a process of this host holds gets a moment to be freed.

        A process that was killed holds it until its memory has been returned, and its launcher may have ended before.
        """
        began = time.monotonic()
        while not (locked := self._try()):
            waited_s = time.monotonic() - began
            holder = Holder.parse(self._path.read_bytes())  # opened anew: NFS shows then what other hosts wrote
            free = self._observation.is_free(holder)
            if free and (locked is None or (holder and waited_s > self._renew_s)):
                break
            if holder is None and waited_s > self._renew_s:
                raise self._observation.in_use(None)
            time.sleep(_TRY_S)
        self._write(self._me)
        if not locked:  # of two that come here at the same moment the later one has it
            time.sleep(self._renew_s / 5)
            if (holder := self._read()) != self._me:
                raise self._observation.in_use(holder)

    def _try(self) -> bool | None:
        """Whether this process has the kernel's lock; None where the file system has none."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in _NO_LOCKS:
                return None
            raise
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._renew_s):
            with suppress(OSError):  # a disk that is full or away for a while: the lock stays
                refused = self._is_deleted() and self._lock_new_file() is False
                self._try()  # again, where it was taken over without it
                holder = self._read()
                if refused or (holder and holder.id != self._me.id):
                    self._lost(self._observation.in_use(holder))
                    return
                self._me = self._me.renewed()
                self._write(self._me)

    def _is_deleted(self) -> bool:
        """Whether the file, perhaps with its folder, was: the next start would lock another one of its name."""
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            return True

    def _lock_new_file(self) -> bool | None:
        """Once training has made the folder again. See _try."""
        deleted, self._fd = self._fd, os.open(self._path, _OPEN, 0o666)
        os.close(deleted)
        return self._try()

    def _read(self) -> Holder | None:
        return Holder.parse(os.pread(self._fd, _RECORD_BYTES, 0))

    def _write(self, holder: Holder) -> None:
        os.pwrite(self._fd, holder.to_bytes().ljust(_RECORD_BYTES), 0)  # one piece: no reader sees half of it
        os.fdatasync(self._fd)

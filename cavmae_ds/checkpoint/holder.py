"""Who holds the lock of a run, and whether that process still lives, judged without comparing clocks of two hosts.

A holder renews its record every few seconds by raising a counter. A process of the same host is looked up by its pid. A
process of another host is alive if its counter rises while this host watches, by this host's monotonic clock.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cavmae_ds.errors import CheckpointError

RENEW_S = 5.0
"""Seconds between two renewals."""
WINDOW = 3.0
"""A holder of another host that is not renewed within this many intervals is dead."""
_EXITING = 0x4  # PF_EXITING of the kernel's task flags


class RunInUse(CheckpointError):
    """Another process that lives holds the lock."""


class Holder(BaseModel):
    """The process that holds a lock."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Drawn by each holder."""
    host: str
    pid: int
    start_ticks: int
    """When the process began, in clock ticks since its host booted: pids are used again."""
    machine: str
    """Boot and pid namespace: two processes with the same value see each other by their pids."""
    renewals: int = 0

    @classmethod
    def me(cls) -> Holder:
        """This process, with a fresh id."""
        pid = os.getpid()
        return cls(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=pid,
            start_ticks=_start_ticks(pid) or 0,
            machine=_machine(),
        )

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """From to_bytes(); None for anything else, as an empty or half-written record."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return None

    def to_bytes(self) -> bytes:
        """JSON."""
        return self.model_dump_json().encode()

    def renewed(self) -> Holder:
        """The record of the next renewal."""
        return self.model_copy(update={"renewals": self.renewals + 1})

    @property
    def is_local(self) -> bool:
        """Whether its pid says here whether it lives."""
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Known only of a local one."""
        return self.is_local and _start_ticks(self.pid) != self.start_ticks


class Observation:
    """Repeated readings of a record, which decide whether its lock may be taken over."""

    def __init__(self, setting: str, address: str, renew_s: float = RENEW_S):
        """setting: the key of the run file that names the address. renew_s: what the holder renews its record after."""
        self._setting, self._address, self._window_s = setting, address, WINDOW * renew_s
        self._local_s = renew_s / 5
        self._first: Holder | None = None
        self._since = 0.0

    def is_free(self, holder: Holder | None) -> bool:
        """Whether the record just read is of no process, or of one that is dead. Raises RunInUse if it lives."""
        if holder is None or holder.is_dead:
            return True
        if self._first is None or holder.id != self._first.id:
            self._first, self._since = holder, time.monotonic()
        watched_s = time.monotonic() - self._since
        # One of this host that was just killed may not be ending yet.
        lives = watched_s > self._local_s if holder.is_local else holder.renewals != self._first.renewals
        if lives:
            raise self.in_use(holder)
        return not holder.is_local and watched_s > self._window_s

    def restart(self) -> None:
        """A reading failed: the holder may have been unable to renew its record just then."""
        self._first = None

    def in_use(self, holder: Holder | None) -> RunInUse:
        """The error that names the holder, as far as it is known."""
        process = f"process {holder.pid} on host {holder.host}" if holder else "another process"
        return RunInUse(
            f"{self._setting} {self._address!r} is in use by {process}; wait until it has ended or stop it, or choose "
            f"another {self._setting}"
        )


@cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _start_ticks(pid: int) -> int | None:
    """When a process of this host began; None if there is none, or it is ending."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the name may hold anything
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") or int(fields[6]) & _EXITING else int(fields[19])

"""What `cavmae launch` runs on every host, by path: starts the host's ranks, passes signals on, leaves nothing behind.

Orders come as lines of JSON on stdin, the first one what to run: nothing secret is on a command line, and no shell sees
a word of it. The end of stdin, or silence, says that nobody is there any more. Only the standard library and psutil.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

BEAT_S = 2.0
"""Seconds between signs of life of whoever gives the orders."""
STOPPED_EARLY = 75
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_GOODBYE_S = 5.0
_UNREAD_S = 5.0


def main() -> int:
    """Carry out the orders. The exit code of the ranks' launcher, or 75 if they were asked to stop before they began.

    First line: `command`, `cwd`, `environment` (added to this host's), `relay` (output goes through a connection, which
    may break), `silence_s` (nothing heard for so long: as if asked to stop), `grace_s` (from SIGTERM until what is
    still there is killed). Later lines: the number of a signal for the ranks, or 0 as a sign of life.
    """
    lines = _Lines()
    order = json.loads(lines.first())
    # Whoever loses its parent below becomes our child: nothing escapes.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ranks = _Ranks(order)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # this host is being shut down
        signal.signal(number, lambda *_: lines.close())
    ranks.attend(lines, order["silence_s"], order["grace_s"])
    return ranks.end()


class _Ranks:
    """The ranks of this host under their launcher."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        pipes = {stream: os.pipe() for stream in (1, 2)} if order["relay"] else {}
        self.launcher = subprocess.Popen(
            order["command"],
            cwd=order["cwd"],
            env=os.environ | {"PATH": _path()} | order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=pipes[1][1] if pipes else None,
            stderr=pipes[2][1] if pipes else None,
            start_new_session=True,  # what is typed at a terminal reaches the ranks through us alone
        )
        self._never_began = False
        self._relays = [
            threading.Thread(target=_relay, args=(read, stream), daemon=True) for stream, (read, _) in pipes.items()
        ]
        for relay, (_, write) in zip(self._relays, pipes.values(), strict=True):
            os.close(write)
            relay.start()

    def attend(self, lines: _Lines, silence_s: float, grace_s: float) -> None:
        """Pass on what is asked until the launcher has ended by itself or has had its time."""
        heard, end = time.monotonic(), float("inf")
        while self.launcher.poll() is None:
            asked = lines.next(0.2)
            now = time.monotonic()
            heard = heard if asked is None else now
            if end == float("inf") and (lines.over or now > heard + silence_s):
                asked = signal.SIGTERM
            if asked:
                self._pass_on(asked)
            if asked == signal.SIGTERM:
                end = min(end, now + grace_s)
            if now > end:
                self.launcher.kill()

    def end(self) -> int:
        """Leave nothing behind; what the launcher ended with, 256 less the number if that was a signal."""
        # First what may hold shared memory, then, if it does not end by itself, who removes that when nobody holds it.
        for wanted in (False, True):
            left = [process for process in psutil.Process().children(recursive=True) if _clears_up(process) == wanted]
            _, alive = psutil.wait_procs(left, _GOODBYE_S if wanted else 0)
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, _GOODBYE_S)
        for relay in self._relays:
            relay.join(_GOODBYE_S)
        return STOPPED_EARLY if self._never_began else self.launcher.returncode % 256

    def _pass_on(self, number: int) -> None:
        # To the ranks, not to their launcher: it would die of SIGUSR1, and at SIGTERM tell one rank after the other.
        ranks = psutil.Process(self.launcher.pid).children()
        self._never_began = not ranks
        if not ranks:
            self.launcher.kill()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)


class _Lines:
    """The numbers that come on stdin, one a line; `over` at its end."""

    def __init__(self) -> None:
        self.over = False
        self._rest = b""

    def first(self) -> bytes:
        """The first line, and no byte of what follows."""
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            return stdin.readline()

    def close(self) -> None:
        """Nobody is listened to any more."""
        self.over = True

    def next(self, seconds: float) -> int | None:
        """The largest number that came meanwhile; None if nothing did within so many seconds."""
        if self.over:
            time.sleep(seconds)
            return None
        if not select.select([0], [], [], seconds)[0]:
            return None
        chunk = os.read(0, 4096)
        self.over = not chunk
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return max(map(int, lines), default=None)


def _clears_up(process: psutil.Process) -> bool:
    """Outlives its rank to remove shared memory: Python's resource tracker, or fault_tolerance/kill_frozen.py."""
    programs = "multiprocessing.resource_tracker", "cavmae_ds.fault_tolerance.kill_frozen"
    try:
        return any(program in argument for argument in process.cmdline() for program in programs)
    except psutil.NoSuchProcess:
        return False


def _path() -> str:
    """Programs of this Python's environment (ninja) are found, though nobody has activated it here."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _relay(source: int, stream: int) -> None:
    """Copy what the ranks print for as long as somebody reads; they never wait for long, nor fail with it."""
    os.set_blocking(stream, False)
    while chunk := os.read(source, 65536):
        with suppress(OSError):
            while chunk and select.select([], [stream], [], _UNREAD_S)[1]:
                chunk = chunk[os.write(stream, chunk) :]


if __name__ == "__main__":
    sys.exit(main())

"""How a rank ends: exit codes that whoever started it acts on, and an end that leaves nothing behind."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from cavmae_ds.errors import for_display

_ORDERLY_SECONDS = 5.0
_WORKER_SECONDS = 1.0
_leaving = threading.Lock()


class ExitCode(IntEnum):
    """What a rank of a pretraining run says about its end."""

    DONE = 0
    DEFECT = 1
    """A mistake in the program: a traceback says where."""
    REFUSED = 2
    """Something must change first; starting the same command again would end the same."""
    LOST = os.EX_UNAVAILABLE
    """69: a rank or a host is gone or stuck, or the run goes back to before its loss rose. Start the same command
    again."""
    STOPPED = os.EX_TEMPFAIL
    """75: asked to stop before the end of the run. Start the same command again to go on."""
    QUIT = 130
    """Told a second time to stop, at once."""


class Leaving(Exception):
    """The run ends here for no fault of its own; the message is one sentence."""

    code: ExitCode


class StoppedEarly(Leaving):
    """Somebody asked for it, and everything is saved."""

    code = ExitCode.STOPPED


class GoneBack(Leaving):
    """The next start goes on from an earlier checkpoint."""

    code = ExitCode.LOST


class PeerLost(Leaving):
    """Another rank is gone, or the way to it."""

    code = ExitCode.LOST


def say(sentence: str) -> None:
    """Write a line to stderr from any thread; a reader that is gone is no reason to fail."""
    with suppress(OSError):
        os.write(2, f"\n{for_display(sentence)}\n".encode())  # the progress line may stand there, unfinished


def leaving() -> bool:
    """Whether a thread of this process is in leave(): what goes wrong in the others is of no interest any more."""
    return _leaving.locked()


def leave(code: int) -> NoReturn:
    """End this process from any thread, its loader workers and shared memory with it. The first caller's code counts.

    Not by way of the interpreter's own end: that joins threads which may wait for a peer that is gone, and destroys
    what gloo's threads still use, which now and then aborts a run that had finished ("terminate called without an
    active exception").
    """
    if not _leaving.acquire(blocking=False):
        threading.Event().wait()  # another thread is at it
    _within(_ORDERLY_SECONDS, _clear_away)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed before the start
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _clear_away() -> None:
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()  # before the functions below wait for them
    for worker in workers:
        worker.join(_WORKER_SECONDS)
        if worker.is_alive():  # torch takes it for a mistake of the main thread that a worker is killed
            worker.kill()
            worker.join()
    atexit._run_exitfuncs()


def _within(seconds: float, function: Callable[[], None]) -> None:
    """Call a function, and wait for it no longer than this."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)

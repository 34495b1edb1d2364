"""Who started whom: a rank does not outlive its launcher for long, and a loader worker not its rank at all."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_PROGRAMS = {"deepspeed", "torchrun", "cavmae"}
_MODULES = {"deepspeed.launcher.runner", "deepspeed.launcher.launch", "torch.distributed.run", "cavmae_ds.cli"}
_SCRIPT = "cavmae_ds/launcher/host.py"
_STARTED_BY_DEEPSPEED = "CROSS_RANK"
"""A variable that deepspeed.launcher.launch sets for its ranks."""
_REPARENTED_S = 0.2


def launchers() -> list[int]:
    """Descriptors (pidfd_open) of the launchers above this process, each of which becomes readable when it ends.

    Not every ancestor: a run started with nohup goes on when the shell ends.
    """
    descriptors = []
    for ancestor in psutil.Process().parents():
        with suppress(psutil.Error, ProcessLookupError):
            if _is_launcher(ancestor.cmdline()):
                descriptors.append(os.pidfd_open(ancestor.pid))
    return descriptors


def when_orphaned(launchers: Sequence[int], act: Callable[[], None]) -> None:
    """Call `act`, on a thread of its own, as soon as one of the launchers has ended.

    From then on nobody may read what this process prints: closed pipes are replaced, for to write to them fails.
    """
    if not launchers and _STARTED_BY_DEEPSPEED in os.environ and os.getppid() == 1:  # it has ended before we looked
        act()
    threading.Thread(target=_attend, args=(launchers, act), name="lineage", daemon=True).start()


def stay_with_rank(_worker: int = 0) -> None:
    """A loader worker begins with this (worker_init_fn): it ends with its rank, and when its rank says so.

    Launchers and schedulers signal all processes of a rank, but a rank whose workers end cannot reach the end of its
    step. Of SIGTERM only the rank's own counts.
    """
    signal.set_wakeup_fd(-1)  # the rank's, inherited
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    rank, usual = os.getppid(), sys.excepthook

    def unless_orphaned(*failure: Any) -> None:
        time.sleep(_REPARENTED_S)  # when a process dies its connections break first
        if os.getppid() == rank:
            usual(*failure)

    sys.excepthook = unless_orphaned  # a batch that was being handed over to a rank that died
    threading.Thread(target=_end_with, args=(rank,), name="lineage", daemon=True).start()


def _end_with(rank: int) -> None:
    while os.getppid() == rank:
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received and received.si_pid == rank:
            break
    os._exit(0)


def _is_launcher(command: Sequence[str]) -> bool:
    """By its command line: `python /bin/deepspeed ...`, `python -u -m deepspeed.launcher.launch ...`."""
    program = [word for word in command[:5] if not word.startswith("-")][:2]
    names = {Path(word).name for word in program}
    return bool(names & _PROGRAMS or _MODULES & set(program) or any(word.endswith(_SCRIPT) for word in program))


def _attend(launchers: Sequence[int], act: Callable[[], None]) -> None:
    waiting = select.poll()
    for launcher in launchers:
        waiting.register(launcher, select.POLLIN)
    for output in (1, 2):
        waiting.register(output, 0)  # a reader that goes away is always told
    while True:
        for descriptor, _ in waiting.poll():
            waiting.unregister(descriptor)
            if descriptor in (1, 2):
                _to_nowhere(descriptor)
            else:
                act()


def _to_nowhere(output: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)

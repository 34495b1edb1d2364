"""Requests to stop: what a signal asks of one rank becomes a wish that all ranks act on together, after a step.

Python runs its handlers between two instructions of the main thread, which may wait in a collective for a rank that is
gone. So the numbers of signals go through a socket to a thread, which hears them at any time.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from multiprocessing import resource_tracker

from cavmae_ds.fault_tolerance.exit import ExitCode, leave, say

LAUNCHER_GONE = 1000
"""A reason beside the numbers of signals."""

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequests:
    """Listens from now on to the end of the process. Made in the main thread, once."""

    def __init__(self, grace_s: float, rank: int):
        """grace_s: how long after SIGTERM the process may still take; then it leaves with what is saved."""
        self.reason = 0
        """Number of the signal, or LAUNCHER_GONE; 0 while nobody asks."""
        self._grace_s, self._rank = grace_s, rank
        self._interrupted = False
        self._last_moment: float | None = None
        self._heard, speaking = socket.socketpair()
        speaking.setblocking(False)
        signal.set_wakeup_fd(speaking.detach(), warn_on_full_buffer=False)
        for number in _REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, _nothing)
        _keep_resource_tracker()
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def ask(self, reason: int) -> None:
        """Stop after this step; the first reason counts. From any thread."""
        self.reason = self.reason or reason

    def _listen(self) -> None:
        while True:
            self._heard.settimeout(self._left_s())
            try:
                for number in self._heard.recv(1):
                    if number in _REQUESTS:
                        self._requested(number)
            except TimeoutError:
                say(
                    f"rank {self._rank}: not done {self._grace_s:g} s after SIGTERM (watch.grace_seconds); what is not "
                    "saved yet is given up, the newest whole checkpoint counts"
                )
                leave(ExitCode.STOPPED)

    def _requested(self, number: int) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                leave(ExitCode.QUIT)
            self._interrupted = True
            if self._rank == 0:
                say("saving; press again to quit at once")
        if number == signal.SIGTERM and self._last_moment is None:
            self._last_moment = time.monotonic() + self._grace_s
        self.ask(number)

    def _left_s(self) -> float | None:
        if self._last_moment is None:
            return None
        return max(1e-3, self._last_moment - time.monotonic())  # 0 would mean: do not wait at all


def _keep_resource_tracker() -> None:
    """Slurm signals all processes of a rank. Python's keeper of shared memory ignores but two of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})  # a new process inherits this
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def described(reason: int) -> str:
    """A reason in words."""
    return "the end of the launcher" if reason == LAUNCHER_GONE else signal.Signals(reason).name


def _nothing(number: int, frame: object) -> None:
    """A handler must be there for the signal's number to be written to the socket."""

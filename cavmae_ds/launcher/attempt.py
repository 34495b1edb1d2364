"""One attempt: the ranks of all hosts from their start to their end."""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cavmae_ds.launcher.host import BEAT_S
from cavmae_ds.launcher.hosts import HERE, Connection, Host
from cavmae_ds.launcher.world_size import Shape

_LOOK_S = 0.2
_MARGIN_S = 15.0  # host.py may need some seconds to clear up after its ranks


class Asked:
    """Signals that this process was sent: whether ever any, and which are to be passed on."""

    def __init__(self) -> None:
        self.ever = False
        self._waiting: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[Asked]:
        """Signals are noted instead of ending this process."""
        noted = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = [signal.signal(number, self._note) for number in noted]
        try:
            yield self
        finally:
            for number, handler in zip(noted, before, strict=True):
                signal.signal(number, handler)

    def take(self) -> list[int]:
        """What has come since this was last called."""
        taken, self._waiting = self._waiting, []
        return taken

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the first signal comes."""
        until = time.monotonic() + seconds
        while not self.ever and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _note(self, number: int, _: object) -> None:
        self.ever = True
        self._waiting.append(number)


class Attempt:
    """Ranks on these hosts, the first of which is their meeting point."""

    def __init__(
        self, program: Sequence[str], hosts: Sequence[Host], shape: Shape, port: int, silence_s: float, grace_s: float
    ) -> None:
        self._silence_s, self._grace_s = silence_s, grace_s
        self._connections = [
            Connection(host, [*_launcher(hosts, shape, number, port), *program], silence_s, grace_s)
            for number, host in enumerate(hosts)
        ]

    def wait(self, asked: Asked) -> dict[str, int]:
        """Pass signals on until all hosts have ended: host -> exit code of its ranks (255: lost).

        When one host has ended, the others have silence_s to notice, and to say whom they miss; then they are stopped.
        """
        next_beat = first_end = 0.0
        while any(connection.code is None for connection in self._connections):
            now = time.monotonic()
            for number in asked.take():
                self._tell(number)
            if now >= next_beat:
                late = first_end and now > first_end + self._silence_s + _MARGIN_S
                self._tell(signal.SIGTERM if late else 0)
                next_beat = now + BEAT_S
            if not first_end and any(connection.code is not None for connection in self._connections):
                first_end = now
            if first_end and now > first_end + self._silence_s + self._grace_s + 2 * _MARGIN_S:
                self._cut()
            time.sleep(_LOOK_S)
        return {connection.name: connection.code or 0 for connection in self._connections}

    def _tell(self, number: int) -> None:
        for connection in self._connections:
            connection.tell(number)

    def _cut(self) -> None:
        for connection in self._connections:
            connection.cut()


def _launcher(hosts: Sequence[Host], shape: Shape, number: int, port: int) -> list[str]:
    """DeepSpeed's launcher of one host's ranks, as the `deepspeed` command would start it there."""
    ranks = {host.name: list(range(shape.ranks_per_host)) for host in hosts}
    address = "127.0.0.1" if hosts[0].name == HERE else hosts[0].name
    return [
        sys.executable, "-m", "deepspeed.launcher.launch", "--log_level=error",
        f"--world_info={base64.urlsafe_b64encode(json.dumps(ranks).encode()).decode()}",
        f"--node_rank={number}", f"--master_addr={address}", f"--master_port={port}",
    ]  # fmt: skip

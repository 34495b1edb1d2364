"""Who sees which checkpoint folder, and what the ranks' threads tell each other about it."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

from cavmae_ds.distributed import World, from_all_ranks, from_first_rank, open_store
from cavmae_ds.errors import CheckpointError, UserError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.5

Found = TypeVar("Found")


@dataclass(frozen=True)
class Disk:
    """The folder of a run's checkpoints as one rank sees it."""

    root: Path
    sharers: range
    """Ranks that see the same folder, this one among them."""
    rank: int
    shared: bool
    """All ranks see it."""

    @property
    def leader(self) -> int:
        """The rank that creates, renames and removes in it."""
        return self.sharers[0]

    @property
    def leads(self) -> bool:
        """True on that rank."""
        return self.rank == self.leader


def find_disk(root: Path, world: World) -> Disk:
    """Learn whether all hosts see the same folder; all ranks call it. Raises CheckpointError if it cannot be written.

    Without a common file system a host's ranks have a folder of their own.
    """
    everybody = range(world.size)
    if world.hosts == 1:
        return Disk(root, everybody, world.rank, True)

    def leave_a_trace() -> str:
        root.mkdir(parents=True, exist_ok=True)
        trace = f".seen-{secrets.token_hex(8)}"
        (root / trace).touch()
        return trace

    trace = root / told_by_first_rank(world, leave_a_trace)
    shared = all(from_all_ranks(trace.exists()))
    if world.is_first:
        trace.unlink()
    first = world.rank - world.local_rank
    on_host = range(first, first + world.size // world.hosts)
    return Disk(root, everybody if shared else on_host, world.rank, shared)


def told_by_first_rank(world: World, find: Callable[[], Found]) -> Found:
    """What the first rank finds; all ranks call it, and raise the CheckpointError that it meets.

    So they do, as a CheckpointError, with another error of the user's or of the disk.
    """
    found, error = None, None
    if world.is_first:
        try:
            found = find()
        except CheckpointError as problem:
            error = problem
        except UserError as problem:
            error = CheckpointError(str(problem))
        except OSError as problem:
            error = CheckpointError(f"{problem.filename} cannot be used: {problem.strerror}")
    found, error = from_first_rank((found, error))
    if error:
        raise error
    return found


class Outcome(NamedTuple):
    """How a save, or its way to the bucket, ended."""

    step: int
    failure: str
    """Why there is no checkpoint of this step; empty if there is one."""
    seconds: float
    bytes: int
    """Of all ranks; 0 after a failure."""
    sent: bool = False
    """It is about the way to the bucket."""


class Unheard(Exception):
    """Nobody said what was waited for."""


class Talk:
    """Short texts between the ranks' threads, by key; each key is said once."""

    def __init__(self, name: str, stop: Event):
        """All ranks call it alike. stop: ends all waiting."""
        self._store = open_store(f"{name}/{from_first_rank(secrets.token_hex(4))}")
        self._stop = stop

    def say(self, key: str, text: str) -> None:
        """Tell every rank that asks."""
        self._store.set(key, text)

    def hear(self, key: str, limit_s: float = math.inf) -> str:
        """Wait for what a rank says. Raises Unheard after limit_s, or when this rank has been told to stop."""
        # The store's own wait prints a warning for each that runs out.
        deadline, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise Unheard(f"nothing was heard of {key} for {limit_s:.0f} s")
            if self._stop.wait(pause_s):
                raise Unheard("this rank is ending")
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
        return self._store.get(key).decode()

    def hear_all(self, keys: list[str], limit_s: float) -> None:
        """Wait until all of them have been said, or for limit_s each."""
        with suppress(Unheard):
            for key in keys:
                self.hear(key, limit_s)

    def forget(self, keys: list[str]) -> None:
        """Give back the memory of what everybody has heard."""
        for key in keys:
            self._store.delete_key(key)

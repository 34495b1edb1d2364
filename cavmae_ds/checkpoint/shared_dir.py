"""Which ranks see the same checkpoint folder."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from cavmae_ds.distributed.collectives import from_all_ranks, from_first_rank
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError, UserError

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

"""Evaluation by one process, or by all ranks that a launcher started: each does a share, the first one has the results.

One process is a world of one that needs no process group.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from cavmae_ds.distributed.collectives import from_all_ranks, to_first_rank
from cavmae_ds.distributed.environment import ranks_of_this_host
from cavmae_ds.distributed.process_group import World, is_lost_connection, open_world
from cavmae_ds.errors import UserError
from cavmae_ds.fault_tolerance.exit import ExitCode, leave, say
from cavmae_ds.terminal import available_cores

Part = TypeVar("Part")


class Agreed(UserError):
    """What some rank met, known to all of them: the first rank speaks."""


def alone() -> World:
    """A world of this process."""
    return World(0, 1, 0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def evaluating_together() -> Iterator[World]:
    """This process alone, or with the others that a launcher started; then it ends with what is inside, see ExitCode.

    What one rank meets ends all of them, and is said once.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield alone()
        return
    if "OMP_NUM_THREADS" not in os.environ:  # else the ranks of a host would each take all its cores
        torch.set_num_threads(max(1, available_cores() // ranks_of_this_host()))
    world = open_world()
    code = ExitCode.DONE
    try:
        yield world
    except UserError as error:
        if world.is_first or not isinstance(error, Agreed):
            say(f"evaluate: error: {error}")
        code = ExitCode.REFUSED
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        say(f"evaluate: error: rank {world.rank} on {socket.gethostname()} has lost the others: {reason}")
        code = ExitCode.LOST
    leave(code)  # not by the interpreter's end, see there


def agreed(world: World, part: Callable[[], Part]) -> Part:
    """What `part` gives on this rank, once it has succeeded on all. All ranks call it together.

    Raises on all of them what it raised on the first that failed: Agreed, or the UserError itself in a world of one.
    """
    if world.size == 1:
        return part()
    failure, value = "", None
    try:
        value = part()
    except UserError as error:
        failure = str(error)
    failures = {rank: said for rank, said in enumerate(from_all_ranks(failure)) if said}
    if failures:
        rank, said = next(iter(failures.items()))
        raise Agreed(said if len(failures) == world.size else f"rank {rank}: {said}")
    return value  # type: ignore[return-value]  # not None unless that is what `part` gives


def to_all(world: World, value: Part) -> list[Part]:
    """Every rank's value in rank order, on every rank."""
    return from_all_ranks(value) if world.size > 1 else [value]


def to_first(world: World, value: Part) -> list[Part]:
    """Every rank's value in rank order, on the first rank; nothing on the others, which stay until it has them."""
    if world.size == 1:
        return [value]
    values: list[Any] = to_first_rank(value)
    from_all_ranks(None)  # a rank that ended now could take with it what is still on its way
    return values

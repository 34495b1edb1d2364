"""What ranks wish, agreed on after every step without a wait: all learn it at the same step.

The exchange of a step begins when the rank has finished it and is read one step later, when all ranks have long
answered: they met in that step's collectives since. It goes over gloo on the CPU, so no device is waited for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from cavmae_ds.distributed.collectives import from_all_ranks, start_max
from cavmae_ds.distributed.process_group import World, control_group
from cavmae_ds.errors import ConfigError


class Agreement:
    """Made by all ranks together."""

    def __init__(self) -> None:
        control_group()
        self._begun: Callable[[], list[int]] | None = None

    def exchange(self, wishes: Mapping[str, int]) -> dict[str, int]:
        """Of each wish the largest of all ranks, as they were in the call before; 0 in the first call.

        Called once after every step by all ranks, with the same names in the same order.
        """
        agreed = self._begun() if self._begun else [0] * len(wishes)
        self._begun = start_max(list(wishes.values()))
        return dict(zip(wishes, agreed, strict=True))

    def close(self) -> None:
        """Wait for the exchange under way, which nobody will read."""
        if self._begun:
            self._begun()


def refuse_together(check: Callable[[], None], world: World) -> None:
    """Called by all ranks: where `check` raises ConfigError on any of them, all raise it, with the same message."""
    refusal = None
    try:
        check()
    except ConfigError as error:
        refusal = str(error) if world.is_first else f"{socket.gethostname()}: {error}"
    for message in from_all_ranks(refusal):
        if message:
            raise ConfigError(message)

"""How many ranks a run gets: pure functions of its batch and the hosts that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cavmae_ds.errors import ConfigError


class Shape(NamedTuple):
    """Ranks of a run: as many on each host."""

    hosts: int
    ranks_per_host: int

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return self.hosts * self.ranks_per_host

    def __str__(self) -> str:
        hosts, ranks = ("" if n == 1 else "s" for n in self)
        return f"{self.hosts} host{hosts} x {self.ranks_per_host} rank{ranks}"


def largest_shape(slots: Sequence[int], min_hosts: int, *, global_batch: int, micro_batch: int) -> Shape:
    """The most ranks that hosts with so many places can share the global batch among; of equals, the fewest hosts.

    Every host gets the same number, as clips are dealt out to hosts. Raises ConfigError if not even one rank fits.
    """
    share = global_batch // micro_batch
    shapes = [
        Shape(hosts, each)
        for each in range(1, max(slots) + 1)
        for hosts in range(min_hosts, sum(places >= each for places in slots) + 1)
        if global_batch % (micro_batch * hosts * each) == 0
    ]
    if not shapes:
        raise ConfigError(
            f"train.global_batch = {global_batch} is not a multiple of train.micro_batch = "
            f"{micro_batch} x ranks on {min_hosts} hosts or more ({share} micro-batches to share); change one"
        )
    return max(shapes, key=lambda shape: (shape.ranks, -shape.hosts))


def check_fewer_hosts(hosts: int, min_hosts: int, check_fewer_ranks: Callable[[], None]) -> None:
    """Raises ConfigError if a run could not go on with fewer hosts, or has fewer than min_hosts.

    check_fewer_ranks: RunConfig.check_fewer_ranks of the run.
    """
    if not 1 <= min_hosts <= hosts:
        raise ConfigError(f"--min-hosts must be from 1 to the {hosts} hosts of the run, got {min_hosts}")
    if min_hosts < hosts:
        try:
            check_fewer_ranks()
        except ConfigError as error:
            raise ConfigError(f"--min-hosts {min_hosts} of {hosts}: {error}") from error

"""Which clip comes when: pure functions of (seed, epoch, shapes), the same on every rank, worker and resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle import get_shuffle


@dataclass(frozen=True)
class EpochShape:
    """How an epoch's clips are dealt out: hosts x ranks per host, micro-batches of a step, clips in each."""

    hosts: int
    ranks_per_host: int
    accumulation: int
    micro_batch: int

    @property
    def global_batch(self) -> int:
        """Clips of one optimizer step."""
        return self.hosts * self.ranks_per_host * self.accumulation * self.micro_batch


def epoch_order(
    shard_sizes: NDArray[np.int64], *, seed: int, epoch: int, shuffle: bool, block: int, canonical_nodes: int
) -> NDArray[np.int64]:
    """Clip ids of one epoch in global order: [N - N % canonical_nodes], each at most once.

    Streaming's py1e shuffle keeps clips of a shard near each other, so a host reads few shards at a time. Entries
    i, i + C, i + 2C, ... (C = canonical_nodes) come from stripe i of the data set: with C a multiple of the hosts
    each host reads its own stripes only, and the order does not depend on how many hosts there are.
    """
    clips = int(shard_sizes.sum())
    if shuffle:
        ids = get_shuffle("py1e", shard_sizes, canonical_nodes, seed, epoch, block)
    else:
        ids = np.arange(clips, dtype=np.int64)
    length = clips // canonical_nodes
    starts = [node * clips // canonical_nodes for node in range(canonical_nodes)]
    return np.stack([ids[start : start + length] for start in starts], axis=1).reshape(-1)


def rank_micro_batches(order: NDArray[np.int64], shape: EpochShape, host: int, local_rank: int) -> NDArray[np.int64]:
    """One rank's clips of an epoch: [steps * accumulation, micro_batch].

    Optimizer step s sees order[s * G : (s + 1) * G] on every world (G = global batch), in this order on one host;
    clips beyond the last whole global batch wait for another epoch's shuffle.
    """
    steps = len(order) // shape.global_batch
    used = order[: steps * shape.global_batch]
    of_host = used.reshape(-1, shape.hosts)[:, host]
    dealt = of_host.reshape(steps * shape.accumulation, shape.ranks_per_host, shape.micro_batch)
    return dealt[:, local_rank]

"""Which clip comes when: pure functions of (seed, epoch, sources), the same on every rank, worker and resume.

A source is an endless row of passes over its clips, each pass in an order of its own; an epoch takes the next piece of
the row of each source. So a clip comes again only after all others of its source have come. In balanced sampling an
epoch takes draws with replacement instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

COPY_BIT, MOST_COPIES = 20, 1 << 11
"""In balanced sampling copy n of a clip in epoch e has the turn e + (n << COPY_BIT): 31 bits, as masks are keyed by."""


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


@dataclass(frozen=True)
class Source:
    """What the order has to know of one source of n clips in S shards."""

    first_clip: int  # place of its first clip among the clips of all sources
    shard_sizes: NDArray[np.int64]  # [S] clips in each shard
    epoch_clips: int  # clips it gives to an epoch
    trained: NDArray[np.bool_]  # [n] False: held out for validation
    weights: NDArray[np.float64] | None = None  # [n] balanced sampling: a clip's chance is its share of the sum

    @cached_property
    def chances(self) -> NDArray[np.float64]:
        """[n] weights of the clips that may come."""
        return self.trained * (np.ones(len(self.trained)) if self.weights is None else self.weights)


def steps_per_epoch(epoch_clips: int, stripes: int, global_batch: int) -> int:
    """Optimizer steps of an epoch; what is left over goes into the next one."""
    return (epoch_clips - epoch_clips % stripes) // global_batch


@dataclass(frozen=True)
class ClipOrder:
    """The order of a run's clips, epoch after epoch.

    The sources are cut into `stripes` parts that stay the same for the whole run: entries i, i + C, i + 2C, ... of an
    epoch (C = stripes) come from stripe i. With C a multiple of the hosts each host reads its own stripes only, and
    the order does not depend on how many hosts there are. Within a stripe streaming's py1e shuffle keeps the clips of
    a shard within `block` clips of each other, so that a host has few shards open at a time.
    """

    sources: Sequence[Source]
    seed: int
    shuffle: bool
    block: int
    stripes: int

    def epoch(self, epoch: int, clips: int, stripes: Iterable[int] | None = None) -> NDArray[np.int64]:
        """An epoch of so many clips: [clips, 2], the place of each clip in the data and its turn.

        Turn: how often the clip has come before in the run (see COPY_BIT for balanced sampling). A clip's mask
        and frame hang on both. With `stripes` only the entries that come from these, in their order; then the number
        of entries is rounded up to whole rounds over all stripes.
        """
        chosen = range(self.stripes) if stripes is None else stripes
        rows = np.stack([self._stripe_epoch(stripe, epoch, clips) for stripe in chosen], axis=1)  # [rounds, chosen, 2]
        flat = rows.reshape(-1, 2)
        return flat[:clips] if stripes is None else flat

    def _stripe_epoch(self, stripe: int, epoch: int, clips: int) -> NDArray[np.int64]:
        counts = shares(-(-clips // self.stripes), [source.epoch_clips for source in self.sources])
        rows = [
            (self._drawn if source.weights is not None else self._next)(number, stripe, epoch, count)
            for number, (source, count) in enumerate(zip(self.sources, counts, strict=True))
        ]
        # Whose turn it is is drawn, each source's own order stays: its shards' clips stay together.
        turn = np.repeat(np.arange(len(rows)), counts)
        self._random("mix", stripe, epoch).shuffle(turn)
        mixed = np.empty((len(turn), 2), np.int64)
        for number, row in enumerate(rows):
            mixed[turn == number] = row
        return mixed

    def _next(self, source: int, stripe: int, epoch: int, count: int) -> NDArray[np.int64]:
        """The next `count` clips of a source's endless row of passes, each with the number of its pass."""
        size = len(self._stripe(source, stripe))
        begin = epoch * count
        first = begin // size
        passes = range(first, (begin + count) // size + 1)
        row = np.concatenate([self._pass(source, stripe, number) for number in passes])
        window = slice(begin - first * size, begin - first * size + count)
        return np.stack([row[window], np.repeat(passes, size)[window]], axis=1)

    def _drawn(self, source: int, stripe: int, epoch: int, count: int) -> NDArray[np.int64]:
        """`count` draws with replacement, in the shuffled order of the clips; copies lie within a block."""
        random = self._random("draw", source, stripe, epoch)
        row, ends = self._row(source)
        low, high = self._range(source, stripe)
        # Stratified over the stripes: each has the same share of the weights, so every clip keeps its chance.
        marks = (stripe + random.random(count)) / self.stripes * ends[-1]
        drawn = np.searchsorted(ends[low:high], marks, side="right").clip(max=high - low - 1)
        times = np.bincount(drawn, minlength=high - low)
        order = self._pass_places(source, stripe, epoch)
        places = np.repeat(order, times[order])
        before = np.concatenate([[0], np.cumsum(times[order])[:-1]])
        occurrence = np.arange(count) - np.repeat(before, times[order])
        if self.shuffle:
            spread = np.arange(count) + random.uniform(-self.block / 2, self.block / 2, count)
            again = np.argsort(spread, kind="stable")
            places, occurrence = places[again], occurrence[again]
        # A clip that is split between two stripes is drawn in both: their copies have numbers of their own.
        copy = (occurrence * self.stripes + stripe) % MOST_COPIES
        turns = epoch + (copy << COPY_BIT)
        return np.stack([row[low:high][places], turns], axis=1)

    def _pass(self, source: int, stripe: int, number: int) -> NDArray[np.int64]:
        return self._stripe(source, stripe)[self._pass_places(source, stripe, number)]

    def _pass_places(self, source: int, stripe: int, number: int) -> NDArray[np.int64]:
        """Pass `number` over a stripe, as places in it."""
        clips = self._stripe(source, stripe)
        if not self.shuffle:
            return np.arange(len(clips))
        ends = np.cumsum(self.sources[source].shard_sizes)
        shard = np.searchsorted(ends, clips - self.sources[source].first_clip, side="right")
        changes = np.flatnonzero(np.diff(shard, prepend=-1, append=-1))  # where another shard begins, and the end
        from streaming.base.shuffle import get_shuffle  # seconds to import, and not for those who only count

        seed = int(np.random.SeedSequence([self.seed, source, stripe]).generate_state(1)[0])
        return get_shuffle("py1e", np.diff(changes), 1, seed, number, self.block)

    def _stripe(self, source: int, stripe: int) -> NDArray[np.int64]:
        """The clips of one stripe, shard by shard."""
        low, high = self._range(source, stripe)
        return self._row(source)[0][low:high]

    def _range(self, source: int, stripe: int) -> tuple[int, int]:
        """Where a stripe lies in its source's row: equal shares of the chances, split clips belong to both sides."""
        row, ends = self._row(source)
        if self.sources[source].weights is None:
            return stripe * len(row) // self.stripes, (stripe + 1) * len(row) // self.stripes
        low = int(np.searchsorted(ends, stripe / self.stripes * ends[-1], side="right"))
        high = int(np.searchsorted(ends, (stripe + 1) / self.stripes * ends[-1], side="left")) + 1
        return low, min(high, len(row))

    def _row(self, source: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A source's clips that may come, shard by shard in the run's order of shards; and their chances summed up."""
        return self._rows[source]

    @cached_property
    def _rows(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        rows = []
        for number, source in enumerate(self.sources):
            shards = np.arange(len(source.shard_sizes))
            if self.shuffle:
                self._random("shards", number).shuffle(shards)
            starts = np.cumsum(source.shard_sizes) - source.shard_sizes
            clips = np.concatenate([np.arange(starts[k], starts[k] + source.shard_sizes[k]) for k in shards])
            clips = clips[source.chances[clips] > 0]
            rows.append((source.first_clip + clips, np.cumsum(source.chances[clips])))
        return rows

    def _random(self, purpose: str, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode(), *place])


def shares(total: int, parts: Sequence[int] | Sequence[Fraction]) -> list[int]:
    """`total` dealt out in proportion to `parts`, by largest remainder; the first of equals wins."""
    exact = [Fraction(total * part, sum(parts)) for part in parts]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def rank_micro_batches(
    order: ClipOrder, epoch: int, steps: int, shape: EpochShape, host: int, local_rank: int
) -> NDArray[np.int64]:
    """One rank's clips and turns of an epoch of `steps` optimizer steps: [steps * accumulation, micro_batch, 2].

    Optimizer step s sees entries s * G ... (s + 1) * G of the epoch on every world (G = global batch), in this order
    on one host.
    """
    clips = steps * shape.global_batch
    if order.stripes % shape.hosts:  # every host reads from all stripes
        of_host = order.epoch(epoch, clips).reshape(-1, shape.hosts, 2)[:, host]
    else:
        of_host = order.epoch(epoch, clips, range(host, order.stripes, shape.hosts))[: clips // shape.hosts]
    dealt = of_host.reshape(steps * shape.accumulation, shape.ranks_per_host, shape.micro_batch, 2)
    return dealt[:, local_rank]

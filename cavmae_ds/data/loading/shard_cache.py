"""The shards of one or more addresses as one row of records, fetched, checked and evicted by all ranks of a host.

streaming brings the index, the readers, the shared states of the shards and eviction; what is decided here is when a
shard may be trusted, and what happens when it cannot be had (spec/data-path.md 6, faults 1 to 3).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from filelock import FileLock
from streaming import StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _ShardState
from streaming.base.shared import SharedArray

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.shard_file import Select, check_columns, read_clip, shard_layout, shard_path
from cavmae_ds.data.loading.download import BadShard, ShardError, ShardStream
from cavmae_ds.data.loading.shared_memory import own_names
from cavmae_ds.distributed.collectives import barrier

log = logging.getLogger(__name__)

MOST_EVICTIONS = 8
"""A shard that is evicted so often between being fetched and being read: the cache is too small."""


class Trust(IntEnum):
    """What is known of a shard on this host, since this run began."""

    UNKNOWN = 0
    WHOLE = 1
    BAD = 2
    UNREACHABLE = 3


class ShardCache(StreamingDataset):
    """Records by their place in the concatenation of the addresses. Built by all ranks together.

    A shard is checked when it is first used: once on each host for as long as the run lives.
    """

    def __init__(self, addresses: Sequence[str], data: DataConfig, batch_size: int = 1):
        self._streams = [ShardStream(address, data) for address in addresses]
        self._limit_bytes = int((data.cache_limit_gib or 0) * 2**30)
        with own_names():
            # What streaming fetches ahead when it iterates, which nobody does here; unset it is a line in every log.
            super().__init__(streams=self._streams, batch_size=batch_size, predownload=batch_size)
        self._trust = SharedArray(self.num_shards, np.uint8, f"{self._shm_prefix_int}_trust")  # zeros: UNKNOWN
        if self._unique_rank_world.num_ranks > 1:  # a rank that refuses below removes what others may not have opened
            barrier()
        for shard in self.shards:
            check_columns(shard)
        self._fetched = np.array([self._streams[k].remote is not None for k in self.stream_per_shard])
        self._failures: dict[int, str] = {}  # what this process could not fetch: shard -> why

    def get_item(self, sample_id: int, retry: int = MOST_EVICTIONS) -> dict[str, Any]:
        """The record at a place, fetched and checked before. Raises BadShard or ShardError naming its shard."""
        return self._read(sample_id, lambda shard, row: shard[row], retry)

    def selected(self, place: int, select: Select) -> dict[str, Any]:
        """What `select` wants of the record (see read_clip): with one frame 0.4 of the CPU time."""

        def read(shard: Any, row: int) -> dict[str, Any]:
            return read_clip(shard_path(shard), row, select, shard_layout(shard))

        return self._read(place, read, MOST_EVICTIONS)

    def _read(self, place: int, read: Callable[[Any, int], dict[str, Any]], retry: int) -> dict[str, Any]:
        """What `read` makes of a shard's reader and the row that a place has in it."""
        shard_id, row = self.spanner[place]
        for _ in range(retry):
            self.prepare_shard(shard_id)
            if self._trust[shard_id] == Trust.BAD:
                raise BadShard(f"{self._name(shard_id)} is damaged; prepare this data set again")
            try:
                record = read(self.shards[shard_id], row)
            except FileNotFoundError:  # evicted since, or removed by somebody
                self._forget(shard_id)
                continue
            self._shard_access_times[shard_id] = time.time_ns()
            return record
        raise ShardError(
            f"{self._name(shard_id)} was evicted {retry} times before it could be read; raise data.cache_limit_gib, or "
            "lower data.shuffle_block, data.predownload or data.workers"
        )

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Make sure that a shard is known to be WHOLE or BAD. Raises ShardError if it cannot be had.

        Not blocking: leaves a shard alone that another process is busy with.
        """
        while self._trust[shard_id] not in (Trust.WHOLE, Trust.BAD):
            if self._trust[shard_id] == Trust.UNREACHABLE:
                raise ShardError(
                    self._failures.get(shard_id)
                    or f"{self._name(shard_id)} could not be fetched, as another process of this host found"
                )
            if self._claim(shard_id):
                self._bring(shard_id)
            elif not blocking:
                return
            else:
                time.sleep(TICK)

    def _claim(self, shard_id: int) -> bool:
        """Take it on this process to bring a shard, and make room for it; False if another is at it or has done it."""
        with FileLock(self._cache_filelock_path):
            state = self._shard_states[shard_id]
            if self._trust[shard_id] != Trust.UNKNOWN or state == _ShardState.PREPARING:
                return False
            self._shard_states[shard_id] = _ShardState.PREPARING
            if state == _ShardState.REMOTE and self._fetched[shard_id]:
                self._make_room(self.shards[shard_id].get_max_size())
                self.cache_usage += self.shards[shard_id].get_max_size()
            return True

    def _bring(self, shard_id: int) -> None:
        trust = Trust.WHOLE
        failure: ShardError | None = None
        try:
            self._streams[self.stream_per_shard[shard_id]].bring(self.shards[shard_id])
        except BadShard as error:
            trust = Trust.BAD
            log.warning("%s", error)
        except ShardError as error:
            failure = error
        except Exception as error:  # whatever it is, nobody must wait for this shard for ever
            failure = ShardError(f"{self._name(shard_id)} could not be read: {error}")
        if failure:
            trust, self._failures[shard_id] = Trust.UNREACHABLE, str(failure)
        with FileLock(self._cache_filelock_path):
            if trust != Trust.WHOLE and self._fetched[shard_id]:
                self.cache_usage -= self.shards[shard_id].get_max_size()
            self._shard_access_times[shard_id] = time.time_ns()
            self._trust[shard_id] = trust
            self._shard_states[shard_id] = _ShardState.LOCAL
        if failure:
            raise failure

    def _make_room(self, wanted: int) -> None:
        """Evict the least recently used of the fetched shards, under the lock. A folder's own files are never touched.

        When all that is there is being fetched just now the limit is passed, by less than a shard for each process.
        """
        trust, states, times = self._trust.numpy(), self._shard_states.numpy(), self._shard_access_times.numpy()
        while self._limit_bytes and self._limit_bytes < self.cache_usage + wanted:
            there = np.flatnonzero((states == _ShardState.LOCAL) & (trust <= Trust.WHOLE) & self._fetched)
            if not len(there):
                return
            coldest = there[np.argmin(times[there])]
            self._evict_shard(coldest)
            trust[coldest] = Trust.UNKNOWN

    def _forget(self, shard_id: int) -> None:
        """A shard that was here is gone."""
        with FileLock(self._cache_filelock_path):
            if self._trust[shard_id] == Trust.WHOLE and self._shard_states[shard_id] == _ShardState.LOCAL:
                self._trust[shard_id] = Trust.UNKNOWN
                self._shard_states[shard_id] = _ShardState.REMOTE
                if self._fetched[shard_id]:
                    self.cache_usage -= self.shards[shard_id].get_max_size()

    def _name(self, shard_id: int) -> str:
        basename = self.shards[shard_id].file_pairs[0][0].basename
        return f"shard {basename!r} of {self._streams[self.stream_per_shard[shard_id]].address!r}"

"""Records by their place in a data set, from a folder or a bucket, with no more read than asked for.

For looking, exporting and measuring; training streams whole shards instead. Layout of a shard file (MDS): the
number of records n, n + 1 offsets, all uint32, a description, and the records back to back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.data.format.index import INDEX, read_index
from cavmae_ds.data.format.layout import layout_of
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.storage import Store, open_store
from cavmae_ds.errors import DataError

Sample = dict[str, Any]  # one of KNOWN_COLUMNS


class Records:
    """The records of a published data set. May be handed to another process."""

    def __init__(self, address: str):
        """address: a folder or s3://bucket/prefix. Raises DataError when no data set of this version is there."""
        self.address = address
        self._open_store: Store | None = open_store(address)
        self.manifest = Manifest.read(self._store.get_bytes("manifest.json"))
        index = read_index(self._store.get_bytes(INDEX), address)
        self.shards = [shard.model_dump() for shard in index.shards]
        sizes = [shard.samples for shard in index.shards]
        self._starts = np.cumsum([0, *sizes])  # place of each shard's first record, and the end
        self._offsets: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, places: Sequence[int]) -> Iterator[Sample]:
        """The records at these places, which ascend. Neighbours are fetched together. Raises DataError if damaged."""
        for number, group in groupby(places, lambda place: int(np.searchsorted(self._starts, place, "right")) - 1):
            rows = np.array(list(group)) - self._starts[number]
            for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
                yield from self._run(number, int(run[0]), int(run[-1]) + 1)

    def _run(self, number: int, first: int, stop: int) -> Iterator[Sample]:
        """Records first to stop of one shard."""
        name = self.name(number)
        offsets = self._offsets_of(number)
        start = int(offsets[first])
        content = self._store.get_range(name, start, int(offsets[stop]))
        layout = layout_of(self.shards[number]["column_names"], self.shards[number]["column_encodings"])
        for begin, end in zip(offsets[first:stop] - start, offsets[first + 1 : stop + 1] - start, strict=True):
            try:
                yield layout.decode(content[begin:end])
            except (ValueError, IndexError, UnicodeDecodeError) as error:
                raise self._damaged(name, error) from error

    def _offsets_of(self, number: int) -> NDArray[np.int64]:
        """Where each record of a shard begins, and where the last one ends: [records + 1]."""
        if number not in self._offsets:
            samples, name = self.shards[number]["samples"], self.name(number)
            head = np.frombuffer(self._store.get_range(name, 0, 4 * (samples + 2)), "<u4").astype(np.int64)
            if len(head) != samples + 2 or head[0] != samples or (np.diff(head[1:]) <= 0).any():
                raise self._damaged(name, "its head does not fit the index")
            self._offsets[number] = head[1:]
        return self._offsets[number]

    def name(self, number: int) -> str:
        """The file of a shard."""
        return self.shards[number]["raw_data"]["basename"]

    def _damaged(self, name: str, why: object) -> DataError:
        return DataError(f"{name} in {self.address!r} is damaged ({why}); prepare the data set again")

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            self._open_store = open_store(self.address)
        return self._open_store

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_store": None}  # an S3 client stays in its process

"""The records of a folder as streaming's own MDS reader gives them.

Not through StreamingDataset: in one process each keeps shared memory open, and attaches to that of all before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streaming.base.format import reader_from_json
from streaming.base.format.mds import MDSReader


class StockReader(Sequence[dict[str, Any]]):
    """Records by their place in a data set."""

    def __init__(self, folder: Path):
        shards = json.loads((folder / "index.json").read_text())["shards"]
        self.shards: list[MDSReader] = [reader_from_json(str(folder), "", shard) for shard in shards]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def __getitem__(self, place: Any) -> Any:
        for shard in self.shards:
            if place < len(shard):
                return shard[place]
            place -= len(shard)
        raise IndexError(place)

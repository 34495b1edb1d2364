"""Data sets of a few clips in many small shards, copied from the clips of another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.schema import MDS_COLUMNS
from tests.data.stock_reader import StockReader

Change = Callable[[int, dict[str, Any]], None]


def small_shards(
    source: Path, out: Path, numbers: Sequence[int], shard_clips: int, change: Change | None = None
) -> Path:
    """These clips of `source`, so many in a shard, with hashes; `change` may alter a record, by its new number."""
    clips = StockReader(source)
    records = [dict(clips[number]) for number in numbers]
    for number, record in enumerate(records):
        if change:
            change(number, record)
    largest = max(len(record["audio"]) + len(record["frames"]) for record in records)
    limit = shard_clips * (largest + 1000) + 4000
    for record in records:  # every record as long as the longest: so many fill a shard
        record["source"] += "." * (largest - len(record["audio"]) - len(record["frames"]))
    with MDSWriter(out=str(out), columns=MDS_COLUMNS, hashes=["xxh3_64"], size_limit=limit) as writer:
        for record in records:
            writer.write(record)
    manifest = Manifest.read((source / "manifest.json").read_bytes()).model_copy(update={"clips": len(records)})
    (out / "manifest.json").write_text(manifest.model_dump_json())
    return out

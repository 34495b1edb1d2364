"""What is in a data set, told from what stands beside its shards, and whether its files are all there and whole."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic_core import from_json

from cavmae_ds.data.format.balance import SAMPLE_WEIGHTS, read_sample_weights
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import ClipFlag
from cavmae_ds.data.prepare.building import Progress, silent
from cavmae_ds.data.prepare.publishing import OUTCOMES
from cavmae_ds.data.storage import Store, open_store
from cavmae_ds.errors import DataError


@dataclass
class Inspection:
    """A data set of C classes. `faults` names what is missing or damaged, one sentence each."""

    address: str
    manifest: Manifest
    shards: int
    bytes: int  # of shards
    balanced: bool  # weights for balanced sampling are there
    faults: list[str]
    # From here on as the parts' notes tell it, clip by clip.
    seconds: array = field(default_factory=lambda: array("d"))  # of sound
    labels: array = field(default_factory=lambda: array("i"))  # of all clips
    without_label: int = 0
    labels_noted: bool = True  # False: the data set is from a version that did not
    flags: Counter[ClipFlag] = field(default_factory=Counter)  # clips that carry each flag

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Clips that carry each class: [C]."""
        return np.bincount(np.array(self.labels, np.int64), minlength=len(self.manifest.classes))


def inspect_data_set(records: Records, *, verify: bool = False, progress: Progress = silent) -> Inspection:
    """Reads no shard, unless `verify`: then all of them, to compare their hashes. `progress` hears of files."""
    store = open_store(records.address)
    faults = list(_file_faults(store, records))
    parts: dict[str, int] = {}  # clips that the index promises in each
    for shard in records.shards:
        part = shard["raw_data"]["basename"].rpartition("/")[0]
        parts[part] = parts.get(part, 0) + shard["samples"]
    inspection = Inspection(
        address=records.address,
        manifest=records.manifest,
        shards=len(records.shards),
        bytes=sum(shard["raw_data"]["bytes"] for shard in records.shards),
        balanced=_has_weights(store, len(records), faults),
        faults=faults,
    )
    total = len(parts) + (len(records.shards) if verify else 0)
    for done, (part, expected) in enumerate(parts.items(), 1):
        faults += _read_notes(store, part, expected, inspection)
        progress(done, total)
    if verify:
        for done, shard in enumerate(records.shards, len(parts) + 1):
            faults += _hash_faults(store, shard)
            progress(done, total)
    return inspection


def _read_notes(store: Store, part: str, expected: int, inspection: Inspection) -> Iterator[str]:
    """Adds the clips of a part to the inspection; yields what is wrong with its notes."""
    name = f"{part}/{OUTCOMES}"
    try:
        clips = [row for row in from_json(store.get_bytes(name)) if not row["code"]]
        if not all(0 <= k < len(inspection.manifest.classes) for row in clips for k in row.get("labels", ())):
            raise ValueError("it has a label that is no class")
        for row in clips:
            inspection.seconds.append(row["seconds"])
            inspection.labels.extend(row.get("labels", ()))
            inspection.without_label += not row.get("labels")
            inspection.labels_noted &= "labels" in row
            inspection.flags.update(flag for flag in ClipFlag if row.get("flags", 0) & flag)
    except DataError as error:
        yield str(error)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        yield f"{name} is damaged: {type(error).__name__}: {error}"
    else:
        if len(clips) != expected:
            yield f"{name} tells of {len(clips)} clips, the index of {expected}"


def _file_faults(store: Store, records: Records) -> Iterator[str]:
    sizes = store.sizes("part-")
    for shard in records.shards:
        name, expected = shard["raw_data"]["basename"], shard["raw_data"]["bytes"]
        if name not in sizes:
            yield f"{name} is missing"
        elif sizes[name] != expected:
            yield f"{name} has {sizes[name]} bytes, the index says {expected}"
    if records.manifest.clips != len(records):
        yield f"manifest.json says {records.manifest.clips} clips, index.json {len(records)}"


def _hash_faults(store: Store, shard: dict[str, Any]) -> Iterator[str]:
    name, hashes = shard["raw_data"]["basename"], shard["raw_data"]["hashes"]
    if not store.exists(name):
        return  # told already
    content = store.get_bytes(name)
    for algorithm, expected in hashes.items():
        if (found := _digest(algorithm, content)) != expected:
            yield f"{name} is damaged: its {algorithm} is {found}, the index says {expected}"


def _digest(algorithm: str, content: bytes) -> str:
    if algorithm in xxhash.algorithms_available:
        return getattr(xxhash, algorithm)(content).hexdigest()
    if algorithm in hashlib.algorithms_guaranteed:
        return hashlib.new(algorithm, content).hexdigest()
    return "not known to this version"


def _has_weights(store: Store, clips: int, faults: list[str]) -> bool:
    if not store.exists(SAMPLE_WEIGHTS):
        return False
    try:
        read_sample_weights(store, clips)
    except DataError as error:
        faults.append(str(error))
    return True

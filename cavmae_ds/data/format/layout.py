"""Where the columns of a record lie in a shard file (MDS), for each set of columns that is known.

A record is the sizes of its columns that have no fixed one, uint32 each, then all columns in alphabetical order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cavmae_ds.data.format.schema import KNOWN_COLUMNS


class Layout(NamedTuple):
    """The columns of a schema, in alphabetical order."""

    encodings: dict[str, str]
    fixed_sizes: dict[str, int | None]  # bytes; None: it varies, and stands at the head of each record
    head: struct.Struct

    def sizes(self, head: bytes) -> dict[str, int]:
        """Bytes of each column of a record, from what stands at its head."""
        varying = iter(self.head.unpack(head))
        return {name: next(varying) if size is None else size for name, size in self.fixed_sizes.items()}

    def decode(self, content: bytes) -> dict[str, Any]:
        """All columns of a record. Raises ValueError when it cannot be what its head says."""
        if len(content) < self.head.size:
            raise ValueError(f"a record has {len(content)} bytes, its head alone takes {self.head.size}")
        at, sample = self.head.size, {}
        for name, size in self.sizes(content[:at]).items():
            if at + size > len(content):
                raise ValueError(f"its column {name} ends {at + size - len(content)} bytes after the record")
            sample[name] = _decoded(self.encodings[name], content[at : at + size])
            at += size
        if at != len(content):
            raise ValueError(f"its columns take {at} bytes, the record has {len(content)}")
        return sample


def layout_of(names: Sequence[str], encodings: Sequence[str]) -> Layout:
    """The layout of a shard with these columns. Raises ValueError, with the columns that are known, for others."""
    found = _LAYOUTS.get((tuple(names), tuple(encodings)))
    if found is None:
        newest = ", ".join(f"{name} {kind}" for name, kind in NEWEST.encodings.items())
        raise ValueError(f"expected {newest}, or those of schema 1")
    return found


def _fixed_size(encoding: str) -> int | None:
    """Bytes of a column: `uint32`, `ndarray:uint32:11`; None of `str` and `bytes`, which vary."""
    kind, *values = encoding.split(":")
    if kind == "ndarray":
        return np.dtype(values[0]).itemsize * int(values[1])
    return None if kind in ("str", "bytes") else np.dtype(kind).itemsize


def _decoded(encoding: str, value: bytes) -> Any:
    kind, *values = encoding.split(":")
    if kind == "ndarray":
        return np.frombuffer(value, values[0])
    if kind in ("str", "bytes"):
        return value.decode() if kind == "str" else value
    return np.frombuffer(value, kind)[0]


def _layout(columns: dict[str, str]) -> Layout:
    encodings = {name: columns[name] for name in sorted(columns)}
    fixed = {name: _fixed_size(encoding) for name, encoding in encodings.items()}
    return Layout(encodings, fixed, struct.Struct(f"<{list(fixed.values()).count(None)}I"))


_KNOWN = [_layout(columns) for columns in KNOWN_COLUMNS]
NEWEST = _KNOWN[0]  # of what is written
_LAYOUTS = {(tuple(layout.encodings), tuple(layout.encodings.values())): layout for layout in _KNOWN}

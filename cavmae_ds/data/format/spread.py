"""Some of many, the same ones each time."""

from __future__ import annotations


def spread(count: int, length: int) -> list[int]:
    """Places of so many items out of `length`, evenly from the first one on, ascending; all if there are no more."""
    count = min(count, length)
    return [k * length // count for k in range(count)]

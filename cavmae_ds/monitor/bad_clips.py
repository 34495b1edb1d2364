"""Clips that could not be used: counted by what was damaged, named once, and refused above data.max_bad_share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cavmae_ds.data.format.clips import BadClip, Damage
from cavmae_ds.errors import DataError, distinct


class BadClips:
    """Counts of this rank since the last point, and of all ranks ever."""

    def __init__(self, max_share: float):
        self._max_share = max_share
        self._new: Counter[Damage] = Counter()
        self._named: set[str] = set()
        self._to_name: list[str] = []
        self._ever: Counter[Damage] = Counter()
        self._seen = 0

    def note(self, clips: Iterable[BadClip]) -> list[str]:
        """Lines that were not there before: a shard is named once, not for each of its clips."""
        fresh = []
        for clip in clips:
            self._new[clip.damage] += 1
            if clip.line not in self._named:
                self._named.add(clip.line)
                fresh.append(clip.line)
        self._to_name += fresh
        return fresh

    def take(self) -> tuple[list[int], list[str]]:
        """This rank's new counts, in the order of Damage, and its new lines."""
        counts, lines = [self._new[damage] for damage in Damage], self._to_name
        self._new, self._to_name = Counter(), []
        return counts, lines

    def add(self, counts: Iterable[float], seen: int) -> dict[str, float]:
        """New counts of all ranks among so many clips to curves. Raises DataError when too many were bad."""
        for damage, count in zip(Damage, counts, strict=True):
            self._ever[damage] += int(count)
        self._seen += seen
        return {"data/bad_clips": float(self._ever.total())} | {
            f"data/bad/{damage.value}": float(count) for damage, count in self._ever.items() if count
        }

    def check(self) -> None:
        """Raises DataError when more clips were bad than data.max_bad_share allows."""
        # One bad clip among the first few says little: judge shares only once a share can be told.
        bad, allowed = self._ever.total(), max(1.0, self._max_share * self._seen)
        if bad > allowed:
            share, limit = distinct(bad / self._seen, self._max_share, ".1%")
            raise DataError(
                f"{bad} of {self._seen} clips ({share}) could not be decoded, data.max_bad_share allows {limit}; the "
                "log names them"
            )

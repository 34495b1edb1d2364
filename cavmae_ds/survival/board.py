"""What ranks tell each other through their common store, away from all collectives."""

from __future__ import annotations

import torch.distributed as dist
from pydantic import BaseModel

_VERDICT = "verdict"


class Beat(BaseModel):
    """A sign of life of a rank: who it is and what it is at."""

    rank: int
    host: str
    pid: int
    started: float
    """When the process began, seconds since 1970: pids come again."""
    number: int = 0
    """Counts the signs of life."""
    step: int = 0
    doing: str = "starting"
    moves: int = 0
    """Grows whenever the rank gets on."""
    alarmed: bool = False
    """It has lost a connection: whoever is silent now is gone."""
    left: bool = False
    """Its last one: it has ended as it should."""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, step {self.step}, {self.doing})"


class Verdict(BaseModel):
    """Why all ranks end."""

    sentence: str
    code: int
    """The exit code of all of them."""
    silent: list[Beat] = []
    """Last signs of life of those who are given up for their silence."""
    stuck: bool = False
    """Every rank writes down where it is."""


class Board:
    """One rank's connection. Each call may hang when the link is cut, and raises dist.DistError when the store is gone.

    The first rank reads what all others say, they read what it says: a thousand ranks are no burden.
    """

    def __init__(self, store: dist.Store, rank: int, size: int):
        self._store, self._rank = store, rank
        self._unheard = {_beat(peer) for peer in (range(1, size) if rank == 0 else [0])}
        self._heard: list[str] = []

    def tell(self, beat: Beat) -> None:
        """Say where this rank is."""
        self._store.set(_beat(self._rank), beat.model_dump_json())

    def beats(self) -> list[Beat]:
        """The last beats of those this rank listens to, as far as they have said anything yet."""
        appeared = [key for key in self._unheard if self._store.check([key])]
        self._unheard.difference_update(appeared)
        self._heard += appeared
        return [Beat.model_validate_json(said) for said in self._store.multi_get(self._heard)] if self._heard else []

    def verdict(self) -> Verdict | None:
        """Why all ranks are to end, if they are."""
        return Verdict.model_validate_json(self._store.get(_VERDICT)) if self._store.check([_VERDICT]) else None

    def pronounce(self, verdict: Verdict) -> Verdict:
        """Tell all ranks to end; the first verdict counts and is returned."""
        return Verdict.model_validate_json(self._store.compare_set(_VERDICT, "", verdict.model_dump_json()))

    def acknowledge(self) -> None:
        """Say that this rank has heard the verdict."""
        self._store.add("acknowledged", 1)

    def acknowledged(self) -> int:
        """Ranks that have."""
        return self._store.add("acknowledged", 0)


def _beat(rank: int) -> str:
    return f"beat/{rank}"

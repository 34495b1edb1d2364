"""What ranks tell each other through their common store, away from all collectives."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from pydantic import BaseModel, ValidationError, field_validator

from cavmae_ds.fault_tolerance.exit import ExitCode, say

_VERDICT = "verdict"

Message = TypeVar("Message", bound=BaseModel)


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
    code: ExitCode
    """The exit code of all of them, never DONE: a run that has ended as it should needs no verdict."""
    silent: list[Beat] = []
    """Last signs of life of those who are given up for their silence."""
    stuck: bool = False
    """Every rank writes down where it is."""

    @field_validator("code")
    @classmethod
    def _is_failure(cls, code: ExitCode) -> ExitCode:
        if code == ExitCode.DONE:
            raise ValueError("0 is the exit code of no failure")
        return code


class Board:
    """One rank's connection. What is malformed, from a process that is no rank of this run, is ignored and logged once.

    Each call may hang when the link is cut, and raises dist.DistError when the store is gone.

    The first rank reads what all others say, they read what it says: a thousand ranks are no burden.
    """

    def __init__(self, store: dist.Store, rank: int, size: int):
        self._store, self._rank = store, rank
        self._unheard = {_beat(peer) for peer in (range(1, size) if rank == 0 else [0])}
        self._heard: list[str] = []
        self._ignored: set[str] = set()

    def tell(self, beat: Beat) -> None:
        """Say where this rank is."""
        self._store.set(_beat(self._rank), beat.model_dump_json())

    def beats(self) -> list[Beat]:
        """The last beats of those this rank listens to, as far as they have said anything yet."""
        appeared = [key for key in self._unheard if self._store.check([key])]
        self._unheard.difference_update(appeared)
        self._heard += appeared
        said = dict(zip(self._heard, self._store.multi_get(self._heard), strict=True)) if self._heard else {}
        beats = {key: self._parsed(Beat, key, message) for key, message in said.items()}
        return [beat for key, beat in beats.items() if beat and key == _beat(beat.rank)]

    def verdict(self) -> Verdict | None:
        """Why all ranks are to end, if they are."""
        return self._parsed(Verdict, _VERDICT, self._store.get(_VERDICT)) if self._store.check([_VERDICT]) else None

    def pronounce(self, verdict: Verdict) -> Verdict:
        """Tell all ranks to end; the first verdict counts and is returned."""
        stored = self._store.compare_set(_VERDICT, "", verdict.model_dump_json())
        first = self._parsed(Verdict, _VERDICT, stored)
        if first is None:
            self._store.set(_VERDICT, verdict.model_dump_json())
        return first or verdict

    def acknowledge(self) -> None:
        """Say that this rank has heard the verdict."""
        self._store.add("acknowledged", 1)

    def acknowledged(self) -> int:
        """Ranks that have."""
        return self._store.add("acknowledged", 0)

    def _parsed(self, kind: type[Message], key: str, message: bytes) -> Message | None:
        try:
            return kind.model_validate_json(message)
        except ValidationError as error:
            if key not in self._ignored:
                self._ignored.add(key)
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                say(
                    f"rank {self._rank}: the store's key {key!r} was set to {message[:200]!r}, which no rank of this "
                    f"run does ({where + ': ' if where else ''}{fault['msg']}); it is ignored, see who can reach the "
                    "port (docs/multinode.md)"
                )
            return None


def _beat(rank: int) -> str:
    return f"beat/{rank}"

"""Short texts that the ranks' threads leave for each other in the store."""

from __future__ import annotations

import math
import secrets
import time
from contextlib import suppress
from threading import Event

from cavmae_ds.distributed.collectives import from_first_rank
from cavmae_ds.distributed.process_group import open_store
from cavmae_ds.retry import Backoff

_POLLING = Backoff(0.005, 0.5, factor=1.5)


class Unheard(Exception):
    """Nobody said what was waited for."""


class Talk:
    """Short texts between the ranks' threads, by key; each key is said once."""

    def __init__(self, name: str, stop: Event):
        """All ranks call it alike. stop: ends all waiting."""
        self._store = open_store(f"{name}/{from_first_rank(secrets.token_hex(4))}")
        self._stop = stop

    def say(self, key: str, text: str) -> None:
        """Tell every rank that asks."""
        self._store.set(key, text)

    def hear(self, key: str, limit_s: float = math.inf) -> str:
        """Wait for what a rank says. Raises Unheard after limit_s, or when this rank has been told to stop."""
        # The store's own wait prints a warning for each that runs out.
        deadline, checks = time.monotonic() + limit_s, 0
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise Unheard(f"nothing was heard of {key} for {limit_s:.0f} s")
            checks += 1
            if self._stop.wait(_POLLING.pause_s(checks)):
                raise Unheard("this rank is ending")
        return self._store.get(key).decode()

    def hear_all(self, keys: list[str], limit_s: float) -> None:
        """Wait until all of them have been said, or for limit_s each."""
        with suppress(Unheard):
            for key in keys:
                self.hear(key, limit_s)

    def forget(self, keys: list[str]) -> None:
        """Give back the memory of what everybody has heard."""
        for key in keys:
            self._store.delete_key(key)

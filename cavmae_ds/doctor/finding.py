"""What a check says, and a limit on how long it may take to say it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from cavmae_ds.errors import UserError


class Verdict(str, Enum):
    """What a finding asks for."""

    OK = "OK"
    NOTE = "NOTE"
    """Worth knowing; a run starts all the same."""
    FIX = "FIX"
    """A run would fail, or lose much of its speed."""


class Finding(NamedTuple):
    """One line of the table."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""
    """The exact thing to do; never empty with FIX."""


Check = Callable[[], list[Finding]]


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, Verdict.OK, found)


def note(name: str, found: str, fix: str = "") -> Finding:
    """Worth knowing."""
    return Finding(name, Verdict.NOTE, found, fix)


def fix(name: str, found: str, fix: str) -> Finding:
    """Must change first."""
    return Finding(name, Verdict.FIX, found, fix)


def bounded(name: str, check: Check, limit_s: float) -> list[Finding]:
    """What a check finds. One that takes longer is left behind, one that fails is itself a finding."""
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(check())
        except UserError as error:
            found.append(refused(name, error))
        except Exception as error:  # of whatever is wrong here: the other checks go on
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            found.append(fix(name, f"could not be checked: {said}", "repair what this names, then ask again"))

    thread = threading.Thread(target=work, daemon=True, name=f"doctor-{name}")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [
            fix(name, f"no answer within {limit_s:g} s", "find out what does not answer there; --seconds allows more")
        ]
    return found


def refused(name: str, error: UserError) -> Finding:
    """The sentence of a refusal: what is wrong; what to do."""
    found, semicolon, do = str(error).rpartition("; ")
    return fix(name, found, do) if semicolon else fix(name, str(error), "correct what this names")

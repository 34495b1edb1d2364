"""What the user reads of an error: one sentence, no traceback, exit code 2; without passwords and control characters.

Every text for a terminal passes `for_display`, every text for a file that users send on passes `without_secrets`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/\s]*@")  # to the last @: what is in front of it may hold another
_SECRET = re.compile(r"(?i)([\w-]*(?:secret|token|password|passwd|access_key|credential)[\w-]*[=:]\s*)[^\s'\"]+")
# C0 and C1 but for tab and line feed, what turns the direction of text, and halves of surrogate pairs, which stand for
# bytes of a file name that are no UTF-8 and cannot be printed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

CHECKOUT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """Something outside the program must change; the message says what. Exit code 2."""


class ConfigError(UserError):
    """A run file, an override or an engine fragment asks for something impossible."""


class DataError(UserError):
    """Input videos, shards or a bucket are missing, damaged or do not fit the run."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another model."""


class GuardError(UserError):
    """Training itself has gone wrong, on all ranks alike."""


class RankError(UserError):
    """Went wrong in the middle of a run, perhaps on one rank alone: whoever meets it speaks."""


class WorkerLost(Exception):
    """A process that loads clips for a rank is gone; starting again helps."""


def distinct(value: float, limit: float, spec: str) -> tuple[str, str]:
    """Two different numbers as text with at least the digits of `spec` (".1%", ",.2f"), and enough to differ."""
    form, first, kind = spec[:-2], int(spec[-2]), spec[-1]
    texts = [(f"{value:{form}{digits}{kind}}", f"{limit:{form}{digits}{kind}}") for digits in range(first, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])


def shortened(text: str, most: int = 120) -> str:
    """The beginning of a text, on one line and printable, for a message: whatever a file holds, it stays a sentence."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def without_secrets(text: str) -> str:
    """Passwords in addresses and values of what is called a secret, token or key become ***."""
    # Also where it is no valid address: a password with a slash in it ends the host for every parser.
    given = os.environ.get("S3_ENDPOINT_URL", "").partition("://")[2].rpartition("@")[0]
    if given:
        text = text.replace(f"{given}@", "***@")
    return _SECRET.sub(r"\1***", _USERINFO.sub("***@", text))


def values_without_secrets(value: Any) -> Any:
    """The same for every text in mappings and lists of plain values; keys stay."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: values_without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [values_without_secrets(inner) for inner in value]
    return value


def printable(text: str) -> str:
    r"""Control characters as Python writes them (\x1b); line breaks and tabs stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def as_label(text: str) -> str:
    """For matplotlib, to which a $ begins mathematics."""
    return printable(text).replace("$", r"\$")


def for_display(text: str) -> str:
    """What a terminal may show of a text that holds names, paths or errors."""
    return printable(without_secrets(text))


def pip_install(*packages: str) -> str:
    """A pip command for a message, with the constraints of the checkout; a wheel has none."""
    constraints = CHECKOUT / "launch" / "constraints.txt"
    constrained = ["-c", str(constraints)] if constraints.is_file() else []
    return shlex.join(["pip", "install", *constrained, *packages])

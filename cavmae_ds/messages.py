"""Text on its way out of the process: without passwords, and without bytes that a terminal would act on.

Every text for a terminal passes `for_display`, every text for a file that users send on passes `without_secrets`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/\s]*@")  # to the last @: what is in front of it may hold another
_SECRET = re.compile(r"(?i)([\w-]*(?:secret|token|password|passwd|access_key|credential)[\w-]*[=:]\s*)[^\s'\"]+")
# C0 and C1 but for tab and line feed, what turns the direction of text, and halves of surrogate pairs, which stand for
# bytes of a file name that are no UTF-8 and cannot be printed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


class _DisplayFormatter(logging.Formatter):
    """Applies to messages and to their tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return for_display(super().format(record))


def log_to_stderr(level: int) -> None:
    """Lines of all loggers from `level` on, unless the root logger has a handler already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_DisplayFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def open_standard_streams() -> None:
    """Call it first. A stream that the caller closed (`>&-`, some daemons) leads to /dev/null.

    Otherwise the next file that is opened would get its number, and with it what libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115  for the life of the process

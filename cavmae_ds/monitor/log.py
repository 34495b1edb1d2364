"""RUN/log.jsonl: every point of the curves and every event of a run, one JSON object a line, for programs.

A point: {"time": 1.8e9, "step": 40, "loss/total": 1.25, ...}, time in seconds since 1970, step = optimizer steps done.
An event has a name too: {"time": ..., "step": 40, "event": "resume", ...}. A value that is no number is null. Lines are
only ever added, each by one write, so a killed process leaves at most its last line cut; what it wrote after the
checkpoint stays, and is superseded by the event "start" or "resume" that follows.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from cavmae_ds.errors import DataError, values_without_secrets

LOG = "log.jsonl"
BEGINNINGS = ("start", "resume")
"""Events of a process that begins: the points after their step are drawn again."""


class LogWriter:
    """Adds lines to the log of a run, on the first rank."""

    def __init__(self, path: Path):
        """Opens the file, or makes it; what a killed process left of its last line is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, _end_of_last_line(self._file))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line. Raises OSError, and leaves none, when the disk is full."""
        shown = {key: _finite(value) for key, value in values_without_secrets(values).items()}
        line = json.dumps({"time": round(time.time(), 3), "step": step} | shown)
        content, whole = (line + "\n").encode(), os.fstat(self._file).st_size
        try:
            if os.write(self._file, content) < len(content):  # what fitted on the disk
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._file, whole)
            raise

    def is_gone(self) -> bool:
        """Whether the file was deleted or replaced: then nobody would see what is written."""
        try:
            return not os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Nothing is left to flush: every line went to the system at once."""
        os.close(self._file)


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Points and events in the order they were written, without the points that a resumed process drew again.

    A cut or damaged line is left out. Raises DataError when the folder holds no log.
    """
    try:
        lines = (run_dir / LOG).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(
            f"no {LOG} can be read in {str(run_dir)!r} ({error.strerror}); is it the run folder of a pretraining?"
        ) from error
    kept: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = from_json(line)
        except ValueError:
            continue
        if not _is_entry(entry):
            continue
        if entry.get("event") in BEGINNINGS:
            kept = [earlier for earlier in kept if "event" in earlier or earlier["step"] <= entry["step"]]
        kept.append(entry)
    return kept


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), (int, float)) for key in ("time", "step"))


def _end_of_last_line(file: int) -> int:
    """Bytes up to and including the last line break."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65536)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

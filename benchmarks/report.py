"""What a benchmark says: rows with their circumstances, as JSON and as one short table. Needs no GPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement."""

    section: str
    """correctness, ceiling, kernel, attention or step."""
    name: str
    implementation: str = ""
    direction: str = ""
    """forward, backward or both."""
    ms: float | None = None
    """Median of several."""
    gigabytes_per_second: float | None = None
    """The case's least bytes over the time: achieved, not moved."""
    tflops: float | None = None
    share: float | None = None
    """Of the measured ceiling (copy for bytes, matmul for FLOPs); MFU for a step."""
    peak_mib: float | None = None
    clips_per_second: float | None = None
    note: str = ""
    """Why there is no number, or what the number is about."""


@dataclass
class Report:
    """All rows of a run, and where they were measured."""

    card: str
    versions: dict[str, str]
    commit: str
    time: datetime
    rows: list[Row] = field(default_factory=list)

    def path_in(self, folder: Path) -> Path:
        """folder/<card>-<date>.json, with a number for a later run of the day."""
        name = f"{slug(self.card)}-{self.time:%Y-%m-%d}"
        names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
        return next(path for path in (folder / f"{name}.json" for name in names) if not path.exists())

    def save(self, path: Path) -> None:
        """Write the rows so far; at no moment is there less than what was saved before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = asdict(self) | {"time": self.time.astimezone(timezone.utc).isoformat(timespec="seconds")}
        document["rows"] = [{k: v for k, v in asdict(row).items() if v not in (None, "")} for row in self.rows]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(path)


def slug(text: str) -> str:
    """Letters and digits of a card's name, for a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def commit_of(checkout: Path) -> str:
    """The commit that is measured, or why it is unknown."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git here)"


def rate(cost_bytes: int, cost_flops: int, ms: float) -> tuple[float, float]:
    """GB/s and TFLOP/s of work done in so many milliseconds."""
    return cost_bytes / ms / 1e6, cost_flops / ms / 1e9


def floor_ms(cost_bytes: int, cost_flops: int, bytes_per_second: float, flops_per_second: float) -> float:
    """The least time: bytes at the copy's bandwidth or FLOPs at the matmul's rate, whichever is longer."""
    return max(cost_bytes / bytes_per_second, cost_flops / flops_per_second) * 1e3


def mfu(clips_per_second: float, flops_per_clip: float, matmul_tflops: float) -> float:
    """Share of the measured matmul rate that a training step turns into the model's own FLOPs."""
    return clips_per_second * flops_per_clip / (matmul_tflops * 1e12)


HEADINGS = "section", "what", "how", "pass", "ms", "GB/s", "TFLOP/s", "share", "peak MiB", "clips/s", "note"


def table(rows: Iterable[Row]) -> str:
    """The rows in aligned columns; correctness shows what failed, or one line when nothing did."""
    rows = list(rows)
    checked = [row for row in rows if row.section == "correctness"]
    shown = [row for row in rows if row.section != "correctness" or not row.note.startswith("ok")]
    lines: list[Sequence[str]] = [HEADINGS, *(_cells(row) for row in shown)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    good = sum(row.note.startswith("ok") for row in checked)
    return f"{text}\n{good} of {len(checked)} cases within twice eager's error against float64"


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: Any, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    share = "" if row.share is None else f"{row.share:.0%}"
    rates = number(row.ms, 3), number(row.gigabytes_per_second, 0), number(row.tflops, 1), share
    rest = number(row.peak_mib, 0), number(row.clips_per_second, 0), row.note
    return row.section, row.name, row.implementation, row.direction, *rates, *rest

"""All findings as a table for people, or one document of plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from cavmae_ds.doctor.finding import Finding, Verdict
from cavmae_ds.errors import for_display, values_without_secrets
from cavmae_ds.terminal import folding_table

VERSION = 1
"""Of the document: raised when a key changes its meaning or goes."""
COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FIX: "bold red"}


class Line(NamedTuple):
    """A finding and the ranks that made it; none: it is about all of them."""

    finding: Finding
    ranks: tuple[int, ...] = ()


def merged(by_rank: Mapping[int, Sequence[Finding]]) -> list[Line]:
    """The same finding of several ranks becomes one line, in the order of the checks."""
    ranks: dict[Finding, list[int]] = {}
    for rank, findings in sorted(by_rank.items()):
        for finding in findings:
            ranks.setdefault(finding, []).append(rank)
    names = list(dict.fromkeys(finding.name for finding in ranks))
    return [Line(finding, tuple(who)) for name in names for finding, who in ranks.items() if finding.name == name]


def worst(lines: Iterable[Line]) -> Verdict:
    """FIX if anything must change."""
    return max((line.finding.verdict for line in lines), key=list(Verdict).index, default=Verdict.OK)


def spans(ranks: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> 0-2, 5"""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def with_hosts(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """Which ranks, and the first of their hosts; no ranks: all."""
    names = list(dict.fromkeys(hosts.get(rank, "?") for rank in ranks))
    return f"{spans(ranks)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if ranks else "all"


def shortened(lines: Sequence[Line]) -> list[Line]:
    """What is in order in several ways (each host has its own address) becomes one line; all else stays."""
    short: dict[Finding | str, list[Line]] = {}
    for line in lines:
        in_order = line.finding.verdict == Verdict.OK
        short.setdefault(line.finding.name if in_order else line.finding, []).append(line)
    shown = []
    for (finding, ranks), *others in short.values():
        if others:
            finding = finding._replace(found=f"{finding.found}; {len(others)} more in order")
        shown.append(Line(finding, tuple(sorted({*ranks, *(rank for line in others for rank in line.ranks)}))))
    return shown


def document(lines: Sequence[Line], hosts: Mapping[int, str], ranks: int) -> dict[str, Any]:
    """What --json writes."""
    return {
        "version": VERSION,
        "verdict": worst(lines).value,
        "ranks": ranks,
        "hosts": {str(rank): host for rank, host in sorted(hosts.items())},
        "findings": [
            values_without_secrets(line.finding._asdict())
            | {"verdict": line.finding.verdict.value, "ranks": list(line.ranks)}
            for line in lines
        ],
    }


def table(lines: Sequence[Line], hosts: Mapping[int, str], ranks: int) -> Table:
    """A line for each finding, what to do below it."""
    whose = ["ranks (hosts)"] if ranks > 1 else []
    check = Column("check", no_wrap=True)
    drawn = folding_table("", check, "found", *whose, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for line in shortened(lines):
        name, verdict, found, do = line.finding
        said = Text(for_display(found))
        if do:
            said.append(f"\n-> {for_display(do)}", "bold")
        ranks_said = [with_hosts(line.ranks, hosts)] if whose else []
        drawn.add_row(Text(verdict.value, COLOURS[verdict]), name, said, *ranks_said)
    return drawn


def summary(lines: Sequence[Line]) -> str:
    """The last line."""
    counts = Counter(line.finding.verdict for line in lines)
    first = f"{counts[Verdict.FIX]} to fix first" if counts[Verdict.FIX] else "nothing to fix"
    return f"{first}, {counts[Verdict.NOTE]} to know, {counts[Verdict.OK]} in order"

"""Which kind each key of a run file is of when a run is resumed, and the table of it in docs/operations.md.

The kinds are declared beside the keys, in sections/: for a whole section, or in the annotation of a key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple, get_args

from cavmae_ds.config.sections.base import OnResume, Section

MEANING = {
    OnResume.FIXED: (
        "which parameters and optimizer states there are, and what a step is",
        "refused; a running mean may be given up (`train.ema_clips: 0`)",
    ),
    OnResume.LEARNT: (
        "what is learnt",
        "refused unless `resume.allow` names it; `augment.noise` of a pretraining may be given up",
    ),
    OnResume.ORDER: ("which clips come, and when", "refused unless `resume.allow` names it"),
    OnResume.CANDIDATES: (
        "how many clips each clip is compared with, together with the number of ranks",
        "free while that number stays; another one is refused unless `resume.allow` names one of these",
    ),
    OnResume.TUNABLE: ("length, rates and decay from here on", "free"),
    OnResume.LOCATION: (
        "where things lie",
        "free; but other clips or shards at `data.train` or `data.sources` (another fingerprint of index.json, or of "
        "the weights of balanced sampling) are refused unless `resume.allow` names the one that is set",
    ),
    OnResume.START: ("what a fresh run starts from", "free, and without effect"),
    OnResume.FREE: ("speed, watching, saving, curves", "free"),
}
"""What the keys of a kind decide, and what happens to a change of theirs."""

CONTENT = ("data.train", "data.sources")
"""Locations of what is compared by its content."""
ALLOWABLE = (OnResume.LEARNT, OnResume.ORDER, OnResume.CANDIDATES)


class Setting(NamedTuple):
    """A key of a run file."""

    key: str  # in full, mask.audio_ratio; data.sources.repeat is of each source
    kind: OnResume
    default: Any


def settings(section: type[Section], prefix: str = "") -> Iterator[Setting]:
    """All keys of a kind of run. Raises AttributeError for a key without a kind."""
    for name, field in section.model_fields.items():
        annotations = (field.annotation, *get_args(field.annotation))
        nested = [kind for kind in annotations if isinstance(kind, type) and issubclass(kind, Section)]
        if nested:
            yield from settings(nested[0], f"{prefix}{name}.")
        else:
            own = [note for note in field.metadata if isinstance(note, OnResume)]
            yield Setting(prefix + name, own[0] if own else section.on_resume, field.default)


def values_by_key(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's plain values by full key; for what each of data.sources has, the list over the sources."""
    values = dict(_leaves(config, ""))
    sources = values.pop("data.sources", None)
    entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
    if entries:
        values["data.sources.remote"] = [entry.get("remote") for entry in entries]
    for amount in ("proportion", "repeat", "choose"):
        amounts = [entry.get(amount) for entry in entries]
        values[f"data.sources.{amount}"] = amounts if any(amounts) else None  # as for data.train
    return values


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_allowed(entries: Iterable[str], run: type[Section]) -> None:
    """Raises ValueError for an entry of resume.allow whose key is unknown, never changes, or needs no consent."""
    kinds = {setting.key: setting.kind for setting in settings(run)}
    for entry in entries:
        key = entry.partition("=")[0]
        if key in CONTENT or kinds.get(key) in ALLOWABLE:
            continue
        if key not in kinds:
            (near,) = difflib.get_close_matches(key, kinds, 1, cutoff=0.0)
            raise ValueError(f"resume.allow names {key!r}, which is no key of this run, did you mean {near!r}?")
        if kinds[key] is OnResume.FIXED:
            raise ValueError(
                f"resume.allow names {key!r}, which cannot change: it decides {MEANING[OnResume.FIXED][0]}; "
                "leave it out, or choose another run_dir"
            )
        raise ValueError(f"resume.allow names {key!r}, which a resume may change without it; leave it out")


def table(runs: Iterable[type[Section]]) -> str:
    """The kinds of keys of all these kinds of runs as a Markdown table; `mask.*` where a section's keys are alike."""
    kinds = {setting.key: setting.kind for run in runs for setting in settings(run)}
    keys: dict[OnResume, list[str]] = {kind: [] for kind in MEANING}
    by_section = sorted(kinds, key=_section)
    for section, group in groupby(by_section, _section):
        names = list(group)
        alike = section and len({kinds[key] for key in names}) == 1
        for key in [f"{section}.*"] if alike else names:
            keys[kinds[names[0] if alike else key]].append(f"`{key}`")
    rows = [
        f"| {kind.value} | {', '.join(keys[kind])} | {decides} | {change} |"
        for kind, (decides, change) in MEANING.items()
    ]
    return "\n".join(["| kind | keys | what they decide | another value at a resume |", "|---|---|---|---|", *rows])


def _section(key: str) -> str:
    return key.rpartition(".")[0]

"""What an inspection found, as tables of words, numbers and bars: the terminal and the page show the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cavmae_ds.data.format.schema import ClipFlag, flag_names
from cavmae_ds.data.inspect.inspection import Inspection
from cavmae_ds.data.prepare.rejects import RejectCode

BIN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
MOST_BINS = 10
SHOWN_CLASSES = 10  # from the top, and as many from the bottom


class Row(NamedTuple):
    """One line of a table; `share` of the longest bar, if there are bars."""

    name: str
    value: str
    share: float | None = None


@dataclass(frozen=True)
class Section:
    """One table."""

    title: str
    rows: list[Row]
    note: str = ""


def summary(found: Inspection) -> list[Section]:
    """The tables, empty ones left out."""
    sections = [_facts(found), _durations(found), _flags(found), _rejected(found), _classes(found)]
    return [section for section in sections if section.rows or section.note]


def _facts(found: Inspection) -> Section:
    manifest = found.manifest
    seconds = float(np.sum(found.seconds))
    count = manifest.frames_per_clip or f"{manifest.frames_per_second:g} a second"
    sides = f"{manifest.frame_size} x {manifest.frame_size} pixels"
    if manifest.short_side:
        sides = f"whole pictures, short side {manifest.short_side} pixels"
    quality = f"JPEG quality {manifest.jpeg_quality}" if manifest.jpeg_quality else "JPEG files as they came"
    windows = ", longer inputs cut into several" if manifest.windows else ""
    rows = [
        Row("clips", f"{manifest.clips:,}"),
        Row("sound", f"{_clock(seconds)}; {manifest.audio_codec}, {manifest.audio_rate_hz // 1000} kHz, "
                     f"{manifest.channel} channel"),
        Row("shards", f"{found.shards:,}, {_size(found.bytes)}, {_size(found.bytes / max(manifest.clips, 1))} a clip"),
        Row("clip length limit", f"{manifest.clip_seconds:g} s{windows}"),
        Row("frames", f"{count} of {sides}, {quality}, frame rule {manifest.frame_rule!r}"),
        Row("every clip has", {"both": "sound and picture", "audio": "sound", "video": "a picture"}[manifest.require]),
        Row("classes", f"{len(manifest.classes):,}"),
        Row("balanced sampling", "weights are stored" if found.balanced else "not possible: no weights are stored"),
        Row("made by", f"cavmae-ds {manifest.tool_versions.get('cavmae-ds', '?')}, schema {manifest.schema_version}"),
    ]  # fmt: skip
    return Section("data set", rows)


def _durations(found: Inspection) -> Section:
    seconds = np.array(found.seconds)
    seconds = seconds[seconds > 0]  # of sound: what has none is counted among the unusual clips
    if not len(seconds):
        return Section("length of clips", [])
    width = next((w for w in BIN_SECONDS if np.ptp(seconds) / w <= MOST_BINS - 1), BIN_SECONDS[-1])
    first = np.floor(seconds.min() / width)
    bins = max(int(np.ceil(seconds.max() / width) - first), 1)  # the last one holds its upper end
    counts = np.bincount(np.minimum((seconds // width - first).astype(int), bins - 1), minlength=bins)
    rows = [
        Row(f"{(first + k) * width:.4g} to {(first + k + 1) * width:.4g} s", f"{count:,}", count / counts.max())
        for k, count in enumerate(counts.tolist())
    ]
    note = f"shortest {seconds.min():.2f} s, mean {seconds.mean():.2f} s, longest {seconds.max():.2f} s"
    return Section("length of clips", rows, note)


def _flags(found: Inspection) -> Section:
    clips = max(found.manifest.clips, 1)
    rows = [
        Row(flag_names(flag)[0], f"{found.flags[flag]:,} ({found.flags[flag] / clips:.1%})", found.flags[flag] / clips)
        for flag in ClipFlag
        if found.flags[flag]
    ]
    return Section("unusual clips", rows)


def _rejected(found: Inspection) -> Section:
    rejected = found.manifest.rejected
    most = max(rejected.values(), default=1)
    meaning = {code.value: code.explanation for code in RejectCode}  # another version may know other codes
    rows = [Row(f"{code}: {meaning.get(code, '')}", f"{n:,}", n / most) for code, n in rejected.items()]
    return Section("rejected inputs", rows)


def _classes(found: Inspection) -> Section:
    names, counts = found.manifest.classes, found.class_counts
    if not found.labels_noted:
        return Section("classes", [], "this data set is from a version that did not note labels; prepare it again")
    if not names:
        return Section("classes", [])
    order = np.argsort(-counts, kind="stable").tolist()
    rows = [Row(names[k], f"{counts[k]:,}", counts[k] / max(counts.max(), 1)) for k in order]
    if len(rows) > 2 * SHOWN_CLASSES:
        left_out = f"... {len(rows) - 2 * SHOWN_CLASSES:,} more ..."
        rows = [*rows[:SHOWN_CLASSES], Row(left_out, ""), *rows[-SHOWN_CLASSES:]]
    shares = counts[counts > 0] / max(counts.sum(), 1)
    alike = np.exp(-(shares * np.log(shares)).sum())  # how many equally frequent classes would vary as much
    note = (
        f"{found.without_label:,} clips without a label, {int((counts == 0).sum()):,} classes without a clip; "
        f"as varied as {alike:.1f} equally frequent classes"
    )
    return Section("classes", rows, note)


def _clock(seconds: float) -> str:
    return (
        f"{seconds / 3600:,.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.1f} s"
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"

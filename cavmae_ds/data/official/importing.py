"""Clips in the layout of the official CAV-MAE data files: a JSON, a label CSV, WAV or FLAC files and JPEG frames.

    DATA.json          {"data": [{"video_id", "wav", "video_path", "labels"}, ...]}
    CLASSES.csv        index,mid,display_name
    WEIGHTS.csv        one float a line, in the order of the JSON
    VIDEO_PATH/frame_0/VIDEO_ID.jpg ... VIDEO_PATH/frame_9/VIDEO_ID.jpg

Source of the layout: spec/cav-mae.md 3.3, 3.6 and 3.7.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cavmae_ds.atomic_io import read_text
from cavmae_ds.data.format.manifest import DataSetFacts
from cavmae_ds.data.official.clip import OfficialInput, read_official
from cavmae_ds.data.prepare.building import (
    ALONE,
    DEFAULT_MAX_BAD_SHARE,
    PartsMissing,
    Progress,
    Share,
    build_data_set,
    silent,
)
from cavmae_ds.data.prepare.inputs import without_duplicates
from cavmae_ds.data.prepare.publishing import PrepareReport
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import BuildSettings
from cavmae_ds.errors import DataError

LABEL_COLUMNS = ("index", "mid", "display_name")

Roots = Sequence[tuple[str, Path]]  # (beginning of a path as written, the absolute folder that it stands for)


class _Entry(BaseModel):
    """One clip as the JSON describes it. Other keys are ignored, as the official loader does."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    video_id: str
    wav: str
    video_path: str
    labels: str = ""


class _Listing(BaseModel):
    """The JSON file. "data" may be a single clip without a list around it."""

    data: Annotated[list[_Entry], BeforeValidator(lambda data: [data] if isinstance(data, dict) else data)]


class Classes(NamedTuple):
    """The classes of a label CSV in the order of their numbers."""

    ids: tuple[str, ...]  # mids
    names: tuple[str, ...]


def import_official(
    listing: Path,
    out: str | Path,
    settings: BuildSettings,
    *,
    label_csv: Path,
    weight_csv: Path | None = None,
    roots: Roots = (),
    workers: int,
    share: Share = ALONE,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    progress: Progress = silent,
) -> PrepareReport | PartsMissing:
    """Builds a data set at `out` (see build_data_set) of the clips that an official JSON names (see find_official)."""
    classes = read_label_csv(label_csv)
    facts = DataSetFacts(
        audio_codec=settings.audio_codec,
        channel="first",
        clip_seconds=settings.clip_seconds,
        frame_size=settings.frame_size,
        frame_rule="given",
        jpeg_quality=None,
        classes=classes.names,
        class_ids=classes.ids,
    )
    inputs = find_official(listing, classes, weight_csv, roots)
    return build_data_set(
        out,
        inputs,
        read_official,
        settings,
        facts,
        workers=workers,
        share=share,
        max_bad_share=max_bad_share,
        progress=progress,
    )


def find_official(
    listing: Path, classes: Classes, weight_csv: Path | None = None, roots: Roots = ()
) -> list[OfficialInput]:
    """The clips that an official JSON names, sorted by clip id. Nothing of a clip itself is opened.

    Relative paths count from the JSON's folder. Each (old, new) of `roots` replaces the beginning of paths. A clip
    with an unknown label, a name that leads out of its folder or a name given before is marked as rejected.
    Raises DataError when one of the files makes no sense.
    """
    entries = _read_listing(listing)
    number = {mid: k for k, mid in enumerate(classes.ids)}
    weights = _read_weights(weight_csv, len(entries)) if weight_csv else [None] * len(entries)
    for old, _ in roots:
        if not any(_is_below(path, old) for entry in entries for path in (entry.wav, entry.video_path)):
            raise DataError(f"--root {old}=...: no path in {listing} begins with {old}; the first is {entries[0].wav}")
    folder = str(listing.parent.resolve())
    inputs = [_input(entry, weight, folder, number, roots) for entry, weight in zip(entries, weights, strict=True)]
    inputs.sort(key=lambda item: item.clip_id)  # stable: of two clips with one id the first in the file is kept
    return list(without_duplicates(inputs))


def read_label_csv(path: Path) -> Classes:
    """The classes of a label CSV: index,mid,display_name. Raises DataError."""
    rows: dict[int, tuple[str, str]] = {}
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, skipinitialspace=True)
    try:
        if missing := set(LABEL_COLUMNS) - set(table.fieldnames or ()):
            raise DataError(f"{path} lacks the column {min(missing)}; it needs {','.join(LABEL_COLUMNS)}")
        for row in table:
            index, mid, name = (row[column] for column in LABEL_COLUMNS)
            if not (index or "").strip().isdecimal() or not mid or name is None:
                raise DataError(f"{path} line {table.line_num} has no whole number index, no mid or no name")
            if int(index) in rows:
                raise DataError(f"{path} line {table.line_num} gives the index {int(index)} a second time")
            rows[int(index)] = (mid.strip(), name.strip())
    except csv.Error as error:
        raise DataError(f"the label CSV {path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} names no class: it has only a header")
    if sorted(rows) != list(range(len(rows))):
        raise DataError(f"the indices in {path} must be 0 to {len(rows) - 1}, each once; got up to {max(rows)}")
    mids = tuple(rows[k][0] for k in range(len(rows)))
    if len(set(mids)) < len(mids):
        raise DataError(f"{path} names the mid {max(mids, key=mids.count)} more than once")
    return Classes(mids, tuple(rows[k][1] for k in range(len(rows))))


def _read_listing(path: Path) -> list[_Entry]:
    try:
        entries = _Listing.model_validate_json(read_text(path)).data
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is not an official data file: {where}: {first['msg']}, got {str(first['input'])[:80]!r}; expected "
            '{"data": [{"video_id": ..., "wav": ..., "video_path": ..., "labels": "id,id"}, ...]}'
        ) from error
    if not entries:
        raise DataError(f"{path} names no clip: its data is empty")
    return entries


def _read_weights(path: Path, clips: int) -> Sequence[float | None]:
    try:
        weights = [float(line) for line in read_text(path).split()]
    except ValueError as error:
        raise DataError(f"the weight CSV {path} cannot be read: {error}; it needs one number a line") from error
    if len(weights) != clips:
        raise DataError(
            f"{path} has {len(weights)} weights for {clips} clips; it needs one a clip, in the JSON's order"
        )
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
        raise DataError(f"the weights in {path} must be finite numbers from 0 up, not all of them 0")
    return weights


def _input(entry: _Entry, weight: float | None, folder: str, number: dict[str, int], roots: Roots) -> OfficialInput:
    name = entry.video_id
    labels = [label.strip() for label in entry.labels.split(",") if label.strip()]
    unknown = [label for label in labels if label not in number]
    rejected = None
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        rejected = ClipRejected(RejectCode.UNREADABLE, f"the video_id {name!r} leads out of its folder")
    elif unknown:
        rejected = ClipRejected(RejectCode.UNKNOWN_LABEL, f"{unknown[0]} is not in the label CSV")
    wav, video_path = (_found(path, folder, roots) for path in (entry.wav, entry.video_path))
    return OfficialInput(
        clip_id=name,
        source=wav.removeprefix(f"{folder}/") if _is_below(wav, folder) else entry.wav,
        labels=tuple(sorted({number[label] for label in labels if label in number})),
        weight=weight,
        rejected=rejected,
        wav=wav,
        video_path=video_path,
    )


# Text, not pathlib, from here on: there may be millions of clips.
def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _found(path: str, folder: str, roots: Roots) -> str:
    for old, new in roots:
        if _is_below(path, old):
            return f"{new}/{path[len(old) :].lstrip('/')}"
    return path if path.startswith("/") else f"{folder}/{path}"

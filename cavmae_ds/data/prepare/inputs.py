"""From a folder, a list or a table to the videos it names, each with its clip id and class ids."""

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from cavmae_ds.atomic_io import read_text
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.errors import DataError, shortened

MEDIA_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
CSV_COLUMNS = ("path", "labels")
MOST_SUFFIXES = 5  # that are listed of skipped files

log = logging.getLogger(__name__)

Row = tuple[str, tuple[str, ...]]  # a path as written, and its class names


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One thing to make a clip of. `source` is its name as the user's folder, list or table gives it."""

    clip_id: str
    source: str
    labels: tuple[int, ...] = ()
    weight: float | None = None  # of the clip in balanced sampling, where one was given; None: computed from the labels
    rejected: ClipRejected | None = None  # already known without opening a file

    @property
    def shown(self) -> str:
        """What a report calls it."""
        return self.source


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInput(Input):
    """One video to prepare, or a window of it."""

    path: str  # absolute; as text, for millions of them are held at once
    start_s: float | None = None  # on the file's clock; None: where the picture begins
    window: str = ""  # seconds after the beginning of the picture, as clip ids and reports show it

    @property
    def shown(self) -> str:
        return self.source + self.window

    def window_at(self, offset_s: float, start_s: float | None) -> "VideoInput":
        """The window that begins so many seconds after the first picture. Ids sort by time, up to 27 hours."""
        window = f"@{offset_s:07.1f}"
        return replace(self, clip_id=self.clip_id + window, start_s=start_s, window=window)


AnyInput = TypeVar("AnyInput", bound=Input)


def find_inputs(source: Path, classes: Sequence[str] | None) -> tuple[list[VideoInput], tuple[str, ...]]:
    """All inputs sorted by clip id, and the class names that their label numbers stand for.

    A folder is searched recursively for MEDIA_SUFFIXES: hidden names are skipped, and the log counts other files. A
    .txt holds one path a line; a .csv has the columns path and, if wanted, labels (class names separated by ";"), named
    by its first line. Their relative paths start at their own folder. `classes` fixes the numbering; without it the
    names are sorted.
    Raises DataError when the source or a label in it makes no sense.
    """
    rows: list[Row]
    if source.is_dir():
        names_below, skipped = _files_below(source)
        rows = [(name, ()) for name in names_below]
        root = source
        if skipped:
            most = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in skipped.most_common(MOST_SUFFIXES))
            log.warning("%s: %d files are skipped for their suffix: %s", source, skipped.total(), most)
    elif source.is_file() and source.suffix.lower() in (".txt", ".csv"):
        rows = _table_rows(source) if source.suffix.lower() == ".csv" else _list_rows(source)
        root = source.parent
    else:
        raise DataError(f"{source} is neither a folder nor a .txt or .csv list of videos; correct the path")
    if not rows:
        raise DataError(f"{source} names no video; known suffixes are {' '.join(MEDIA_SUFFIXES)}")

    names = tuple(classes) if classes is not None else tuple(sorted({name for _, row in rows for name in row}))
    number = {name: k for k, name in enumerate(names)}
    if len(number) < len(names):
        raise DataError(f"the class list names a class twice among its {len(names)} lines; remove the copy")
    inputs = []
    for name, labels in rows:
        if unknown := [label for label in labels if label not in number]:
            raise DataError(
                f"{source}: {shortened(name)} has the label {shortened(unknown[0])!r}, which the class list lacks"
            )
        inputs.append(video_input(root, name, tuple(sorted({number[label] for label in labels}))))
    inputs.sort(key=lambda item: (item.clip_id, item.source))
    return list(without_duplicates(inputs)), names


def video_input(root: Path, name: str, labels: tuple[int, ...] = ()) -> VideoInput:
    """A video by its path as written, relative to root. One whose name is not valid UTF-8 is marked as rejected."""
    path = Path(os.path.normpath((root / name).absolute()))
    shown = PurePosixPath(name)
    if shown.is_absolute() and path.is_relative_to(root.absolute()):
        shown = PurePosixPath(path.relative_to(root.absolute()))
    clip_id = str(shown.with_suffix("")).lstrip("/")
    printable = _readable(clip_id)
    rejected = None
    if printable != clip_id:
        rejected = ClipRejected(RejectCode.UNREADABLE, "the name is not valid UTF-8")
    return VideoInput(clip_id=printable, source=_readable(name), path=str(path), labels=labels, rejected=rejected)


def without_duplicates(inputs: Iterable[AnyInput]) -> Iterator[AnyInput]:
    """Of neighbours with one clip id the first stays; the others are marked as rejected."""
    first = None
    for item in inputs:
        if first and item.clip_id == first.clip_id:
            detail = f"the clip {item.clip_id} already comes from {first.source}"
            item = replace(item, rejected=ClipRejected(RejectCode.DUPLICATE_ID, detail))
        else:
            first = item
        yield item


def _files_below(root: Path) -> tuple[list[str], Counter[str]]:
    """Names of media relative to root, and how many other files there are by suffix.

    Links to folders are followed, but no folder is entered twice.
    """
    names, skipped, entered = [], Counter[str](), set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        for name in sorted(name for name in files if not name.startswith(".")):
            suffix = Path(name).suffix.lower()
            if suffix in MEDIA_SUFFIXES:
                names.append((Path(folder) / name).relative_to(root).as_posix())
            else:
                skipped[_readable(suffix)] += 1
    return names, skipped


def _list_rows(path: Path) -> list[Row]:
    # A "#" may begin a file name and a space may end it: neither is interpreted.
    rows: list[Row] = []
    for number, line in enumerate(io.StringIO(read_text(path, keep_invalid=True), newline=None), start=1):
        name = line.rstrip("\n")
        _check_encoding(path, number, name)
        if name.strip():
            rows.append((name, ()))
    return rows


def _table_rows(path: Path) -> list[Row]:
    rows = []
    table = csv.DictReader(io.StringIO(read_text(path, keep_invalid=True), newline=""), strict=True)
    try:
        columns = table.fieldnames or []
        if "path" not in columns or not set(columns) <= set(CSV_COLUMNS):
            first = shortened(_readable(",".join(columns)))
            raise DataError(f"{path} has the columns {first}; allowed in its first line are path,labels or path alone")
        for row in table:
            if not row["path"] or None in row or None in row.values():
                raise DataError(f"{path} line {table.line_num} has no path or not {len(columns)} fields")
            _check_encoding(path, table.line_num, row["path"], row.get("labels", ""))
            labels = (label.strip() for label in row.get("labels", "").split(";"))
            rows.append((row["path"], tuple(label for label in labels if label)))
    except csv.Error as error:
        raise DataError(f"{path} line {table.line_num} is not valid CSV: {error}") from error
    return rows


def _check_encoding(table: Path, line: int, name: str, labels: str = "") -> None:
    """Raises DataError for text that is not UTF-8, unless these bytes are the name of a file that is there."""
    for text in (name, labels):
        if _readable(text) != text and not (text is name and os.path.lexists(table.parent / name)):
            got = text.encode("utf-8", "surrogateescape")
            raise DataError(f"{table} line {line} is not UTF-8, got {got[:80]!r}; save the file as UTF-8")


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

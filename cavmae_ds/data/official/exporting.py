"""From shards back to the layout of the official CAV-MAE data files, for whoever has only its loader.

    OUT/data.json  OUT/data_weight.csv  OUT/class_labels.csv  OUT/audio/ID.wav  OUT/frames/frame_{0..9}/ID.jpg

Source of the layout: spec/cav-mae.md 3.3.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import soundfile

from cavmae_ds.atomic_io import refusing_to_write
from cavmae_ds.data.format.balance import SAMPLE_WEIGHTS, read_sample_weights
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.records import Records, Sample
from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, FRAMES_PER_CLIP, audio_of, frame_count, frame_jpeg, labels_of
from cavmae_ds.data.official.importing import LABEL_COLUMNS
from cavmae_ds.data.prepare.building import Progress, silent
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import DataError

LISTING = "data.json"
WEIGHT_CSV = "data_weight.csv"  # the official name: that of the JSON, and _weight
LABEL_CSV = "class_labels.csv"
PLAIN = " _.-~+,=@#&!()[]{}'"  # beside letters and digits
MAX_NAME_BYTES = 255 - len(".jpg")  # what file systems allow


class Exported(NamedTuple):
    """How many clips were written, how many of them have no label, and how many were left out."""

    clips: int
    without_label: int
    left_out: int = 0  # without sound or picture, which the official layout does not know


def create_official(
    shards: str,
    out: Path,
    *,
    limit: int | None = None,
    ids: Collection[str] | None = None,
    progress: Progress = silent,
) -> Exported:
    """Writes clips of a data set (a folder or s3://) to a new folder: all, the first `limit`, or those with `ids`.

    Sound is 16 kHz mono 16-bit PCM; JPEG files are ten of the stored ones, evenly spread, some twice where there are
    fewer (the official loader cuts whole ones itself); the video_id is file_name of the clip id; weights are the clips'
    weights in the data set, if it has any. Clips without sound or picture are left out. The folder appears when all of
    it is written. Raises DataError when it is there already, when a clip id is missing, unknown or too long for a file
    name, or when no clip has both parts.
    """
    records = Records(shards)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already; give another --out")
    places = _places(records, limit, ids)
    final = out.resolve()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        with refusing_to_write(out, errno.ENOENT):
            for folder in ("audio", *(f"frames/frame_{k}" for k in range(FRAMES_PER_CLIP))):
                (partial / folder).mkdir(parents=True)
            names, labels, written = [], [], []
            for done, (place, sample) in enumerate(zip(places, records.read(places), strict=True), 1):
                if frame_count(sample) and sample["n_samples"]:
                    names.append(file_name(sample["clip_id"]))
                    labels.append(labels_of(sample).tolist())
                    written.append(place)
                    _write_clip(partial, names[-1], sample)
                progress(done, len(places))
            if places and not written:
                raise DataError(f"none of {len(places)} clips in {shards!r} has sound and picture, as official ones do")
            _write_tables(partial, records, written)
            _write_listing(partial, final, names, labels, official_class_ids(records.manifest))
            partial.replace(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(len(names), labels.count([]), len(places) - len(written))


def file_name(clip_id: str) -> str:
    """A clip id as a name without folders, one for each id: urllib.parse.unquote gives the id back.

    ASCII letters, digits, blanks and PLAIN stay; all else becomes %XX. Raises DataError where that is longer than a
    name may be.
    """
    name = quote(clip_id, safe=PLAIN)
    if not 0 < len(name) <= MAX_NAME_BYTES:
        raise DataError(
            f"the clip id {clip_id[:80]!r} gives a file name of {len(name)} bytes, allowed are 1 to {MAX_NAME_BYTES}; "
            "leave it out with --ids"
        )
    return name


def official_class_ids(manifest: Manifest) -> Sequence[str]:
    """The id (mid) of each class; made up as class_0, class_1, ... where the data set came without."""
    return manifest.class_ids or [f"class_{k}" for k in range(len(manifest.classes))]


def _places(records: Records, limit: int | None, ids: Collection[str] | None) -> Sequence[int]:
    if ids is None:
        return range(min(len(records), limit or len(records)))
    wanted = set(ids)
    everything = records.read(range(len(records)))
    found = {sample["clip_id"]: place for place, sample in enumerate(everything) if sample["clip_id"] in wanted}
    if missing := sorted(wanted - found.keys()):
        raise DataError(f"{records.address} lacks {len(missing)} of {len(wanted)} ids; the first is {missing[0]!r}")
    return list(found.values())


def _write_clip(folder: Path, name: str, sample: Sample) -> None:
    frames = frame_count(sample)
    for k in range(FRAMES_PER_CLIP):
        jpeg = frame_jpeg(sample, k * frames // FRAMES_PER_CLIP)
        (folder / "frames" / f"frame_{k}" / f"{name}.jpg").write_bytes(jpeg)
    content = io.BytesIO()  # libsndfile does not say why a file cannot be written
    soundfile.write(content, audio_of(sample), AUDIO_RATE_HZ, subtype="PCM_16", format="WAV")
    (folder / "audio" / f"{name}.wav").write_bytes(content.getvalue())


def _write_tables(folder: Path, records: Records, places: Sequence[int]) -> None:
    manifest = records.manifest
    with (folder / LABEL_CSV).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(LABEL_COLUMNS)
        pairs = zip(official_class_ids(manifest), manifest.classes, strict=True)
        table.writerows((number, *pair) for number, pair in enumerate(pairs))
    store = open_store(records.address)
    if store.exists(SAMPLE_WEIGHTS):
        weights = read_sample_weights(store, len(records))[list(places)]
        (folder / WEIGHT_CSV).write_text("".join(f"{weight!r}\n" for weight in weights.tolist()))


def _write_listing(
    folder: Path, final: Path, names: Iterable[str], labels: Iterable[list[int]], class_ids: Sequence[str]
) -> None:
    entries = [
        {
            "video_id": name,
            "wav": str(final / "audio" / f"{name}.wav"),
            "video_path": str(final / "frames"),
            "labels": ",".join(class_ids[label] for label in of_clip),
        }
        for name, of_clip in zip(names, labels, strict=True)
    ]
    (folder / LISTING).write_text(json.dumps({"data": entries}, indent=1))

"""Spoken and handwritten digits as shards: made, then imported with both labels, and with the digit as the only one."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.digits_maker import Ink, make_digits, read_recordings
from benchmarks.digits_runs import MODEL
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.inspect.statistics import clip_sums
from cavmae_ds.data.official.importing import import_official
from cavmae_ds.data.prepare.settings import BuildSettings

FACTORS = {"digit": range(10), "speaker": range(10, 16)}  # class ids, in the order of class_labels.csv
DIGIT_IDS = "/d/"
"""What the official ids of the digits begin with."""
FEW = 300


@dataclass(frozen=True)
class Digits:
    """The data set, as shards, and the statistics of its sounds."""

    train: str
    """Labels tell digit and speaker: what pretraining, which looks at no label, and retrieval are given."""
    test: str
    train_digit: str
    """The same clips, whose only label is the digit: what a classifier of ten classes is trained on."""
    test_digit: str
    train_few: str
    """The first FEW clips of train_digit: five or so of each speaker's digits."""
    clips: int
    """Of train."""
    audio_mean: float
    audio_std: float


def prepare(folder: Path, ink: Ink, seed: int, limit: int, recordings: Path | None) -> Digits:
    """Make and import both splits; what is there stays. limit: at most this number of clips a split, 0 for all."""
    made, shards = folder / "made", folder / "shards"
    if not (made / "class_labels.csv").is_file():  # written last
        make_digits(made, read_recordings(recordings), MODEL["image_size"], limit, ink, seed)
    _write_digits_alone(made)
    settings = BuildSettings(frame_size=MODEL["image_size"])
    for name in ("train", "test", "train-digit", "test-digit", "train-few"):
        label_csv = made / ("class_labels-digit.csv" if "-" in name else "class_labels.csv")
        workers = len(os.sched_getaffinity(0))
        import_official(made / f"{name}.json", str(shards / name), settings, label_csv=label_csv, workers=workers)
    records = Records(str(shards / "train"))
    found = clip_sums(records, range(len(records)), torch.device("cpu")).statistics().every_frame
    return Digits(
        train=str(shards / "train"),
        test=str(shards / "test"),
        train_digit=str(shards / "train-digit"),
        test_digit=str(shards / "test-digit"),
        train_few=str(shards / "train-few"),
        clips=len(records),
        audio_mean=found.mean,
        audio_std=found.std,
    )


def _write_digits_alone(made: Path) -> None:
    """The listings and the classes once more, without the speakers."""
    with (made / "class_labels.csv").open(newline="") as file:
        header, *classes = csv.reader(file)
    with (made / "class_labels-digit.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in classes if row[1].startswith(DIGIT_IDS))])
    for split in ("train", "test"):
        clips = json.loads((made / f"{split}.json").read_text())["data"]
        for clip in clips:
            clip["labels"] = ",".join(label for label in clip["labels"].split(",") if label.startswith(DIGIT_IDS))
        (made / f"{split}-digit.json").write_text(json.dumps({"data": clips}))
        (made / f"{split}-few.json").write_text(json.dumps({"data": clips[:FEW]}))

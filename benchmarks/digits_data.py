"""Spoken and handwritten digits as shards: made, then imported twice, with both labels and with the digit alone."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.digits_runs import CHECKOUT, MODEL, command
from cavmae_ds.data.official import import_official
from cavmae_ds.data.records import Records
from cavmae_ds.data.settings import BuildSettings
from cavmae_ds.data.statistics import clip_sums

MAKER = CHECKOUT / ".." / "shared" / "tools" / "make_digits.py"
FACTORS = {"digit": range(10), "speaker": range(10, 16)}  # class ids, in the order of class_labels.csv
DIGIT_IDS = "/d/"
"""What the official ids of the digits begin with."""
Ink = Literal["speaker", "random"]


@dataclass(frozen=True)
class Digits:
    """The data set, as shards, and the statistics of its sounds."""

    train: str
    """Labels tell digit and speaker: what pretraining, which looks at no label, and retrieval are given."""
    test: str
    train_digit: str
    """The same clips, whose only label is the digit: what a classifier of ten classes is trained on."""
    test_digit: str
    audio_mean: float
    audio_std: float


def prepare(folder: Path, ink: Ink, seed: int, limit: int, maker: Path) -> Digits:
    """Make and import both splits; what is there stays. limit: at most so many clips a split, 0 for all."""
    made, shards = folder / "made", folder / "shards"
    if not (made / "class_labels.csv").is_file():  # written last
        options = {"size": MODEL["image_size"], "limit": limit, "ink": ink, "seed": seed}
        command([sys.executable, maker, made, *(f"--{key}={value}" for key, value in options.items())])
    _write_digits_alone(made)
    settings = BuildSettings(frame_size=MODEL["image_size"])
    for suffix in ("", "-digit"):
        label_csv, workers = made / f"class_labels{suffix}.csv", len(os.sched_getaffinity(0))
        for name in (f"train{suffix}", f"test{suffix}"):
            import_official(made / f"{name}.json", str(shards / name), settings, label_csv=label_csv, workers=workers)
    records = Records(str(shards / "train"))
    found = clip_sums(records, range(len(records)), torch.device("cpu")).statistics().every_frame
    train, test, train_digit, test_digit = (str(shards / x) for x in ("train", "test", "train-digit", "test-digit"))
    return Digits(train, test, train_digit, test_digit, found.mean, found.std)


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

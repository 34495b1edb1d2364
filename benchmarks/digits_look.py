"""What a model of the digits benchmark knows: retrieval, explained variance, linear probes, accuracies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits_data import FACTORS, Digits
from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.weights import assemble
from cavmae_ds.data.loading.selection import MIDDLE_POSITION
from cavmae_ds.evaluation.inference import EVERY_FRAME, MIDDLE_ALONE, Judged, classify, open_judged, pooled_features
from cavmae_ds.evaluation.retrieval import retrieval_scores
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.kernels.contrastive import unit_rows
from cavmae_ds.models.cavmae.config import Mode
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks.finetune.validation import SCORES


@dataclass(frozen=True)
class Clips:
    """What the model makes of every clip of a split, nothing hidden, middle frame; row = clip."""

    audio: Tensor  # [N, D] pooled
    image: Tensor  # [N, D]
    labels: list[list[int]]

    def of(self, factor: str) -> list[list[int]]:
        """Each clip's classes of one factor."""
        return [[label for label in clip if label in FACTORS[factor]] for clip in self.labels]

    def views(self) -> dict[str, Tensor]:
        """What a probe may see: [N, D] or [N, 2 D]."""
        return {"audio": self.audio, "image": self.image, "both": torch.cat([self.audio, self.image], 1)}


def look(judged: Judged) -> Clips:
    """Features of every clip of the shards."""
    pooled = pooled_features(judged, MIDDLE_ALONE)
    assert pooled  # this process is the first, and alone
    return Clips(*pooled)


def retrieval(clips: Clips) -> dict[str, dict[str, Any]]:
    """Share of first hits that share the query's digit, or speaker, in both directions, and what guessing scores."""
    found = {}
    for factor in FACTORS:
        scores = retrieval_scores(clips.audio, clips.image, clips.of(factor))
        found[factor] = {
            "audio_to_image": scores.audio_to_image.class_precision_at_1,
            "image_to_audio": scores.image_to_audio.class_precision_at_1,
            "chance": scores.chance_class_precision_at_1,
        }
    return found


def explained(rows: Tensor, digits: Tensor, speakers: Tensor) -> float:
    """Share of the variance of unit rows [N, D] that the digit explains among clips of one speaker.

    Adjusted for chance, as an adjusted R squared: 0 for rows that do not know the digit, 1 for rows that know nothing
    else. digits, speakers [N] int64. It grows long before anything is retrieved.
    """
    rows = _without_means(unit_rows(rows).double(), speakers)
    left = _without_means(rows, digits)
    clips, classes = len(rows), len(FACTORS["digit"])
    return 1 - float(left.square().sum() / rows.square().sum()) * (clips - 1) / max(1, clips - classes)


def _without_means(rows: Tensor, classes: Tensor) -> Tensor:
    """Rows [N, D] less the mean of their class [N] int64."""
    same = (classes[:, None] == classes).to(rows.dtype)  # [N, N]
    return rows - same @ rows / same.sum(1, keepdim=True)


def probes(train: Clips, test: Clips) -> dict[str, dict[str, float]]:
    """Held-out accuracy of a logistic regression on standardised features, by factor and view."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found: dict[str, dict[str, float]] = {}
    for factor in FACTORS:
        known, asked = ([clip[0] for clip in clips.of(factor)] for clips in (train, test))
        found[factor] = {}
        for view, rows in train.views().items():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
            found[factor][view] = probe.fit(rows.numpy(), known).score(test.views()[view].numpy(), asked)
    return found


def point(step: int, clips: Clips) -> dict[str, Any]:
    """What is followed from checkpoint to checkpoint."""
    digits, speakers = (torch.tensor([clip[0] for clip in clips.of(factor)]) for factor in FACTORS)
    variance = {
        view: explained(rows, digits, speakers) for view, rows in (("audio", clips.audio), ("image", clips.image))
    }
    return {"step": step, **retrieval(clips), "explained": variance}


def follow(run_dir: Path, digits: Digits) -> dict[str, Any]:
    """Points at the start and at every checkpoint, probes at the start and at the end, curves of the losses."""
    train = open_judged(run_dir, digits.train)
    test, model = replace(open_judged(run_dir, digits.test), loaded=train.loaded), train.loaded.model
    torch.manual_seed(train.run["train"]["seed"])  # as the run did
    model.load_state_dict(CAVMAE(train.loaded.config, model.normalisation).state_dict())
    untrained = look(train), look(test)
    points = [point(0, untrained[1])]
    for folder in whole_checkpoints(run_dir):
        manifest = read_manifest(folder)
        model.load_state_dict(assemble(folder, manifest))
        held_out = look(test)
        points.append(point(manifest.step, held_out))
    return {
        "retrieval": points,
        "probes": {"untrained": probes(*untrained), "pretrained": probes(look(train), held_out)},
        "curves": {tag: curve for tag, curve in read_curves(run_dir).items() if "loss/" in tag},
    }


def accuracies(run_dir: Path, mode: Mode, digits: Digits) -> dict[str, Any]:
    """Of a classifier, on held-out clips: with the middle frame, with ten frames averaged, and after each epoch."""
    judged = open_judged(run_dir, digits.test_digit)
    _, found = classify(judged, [mode], EVERY_FRAME, "softmax")
    epochs: list[Mapping[str, float]] = json.loads((run_dir / SCORES).read_text())["epochs"]
    scores = found[mode]
    one_frame = scores.of_frames[MIDDLE_POSITION] if scores.frames else scores.scores
    return {
        "one_frame": one_frame.accuracy,
        "ten_frames": scores.scores.accuracy,
        "epochs": {noted["epoch"]: noted["accuracy"] for noted in epochs},
        "losses": {noted["epoch"]: noted["total"] for noted in epochs},
    }

"""Validation while finetuning: loss and scores over all clips never trained on, the same on any number of ranks.

Nothing is augmented or smoothed, frames are the middle ones (spec/cav-mae.md 3.6); no clip is dropped (trap 25).
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.data.loading.evaluation import ValidationClips, evaluating, groups_of
from cavmae_ds.data.transforms.augment import targets
from cavmae_ds.distributed.collectives import from_all_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.evaluation.classification import Classification, classification_scores, one_hot
from cavmae_ds.tasks.finetune.config import ClassificationLossConfig, EvaluateConfig
from cavmae_ds.tasks.finetune.losses import classification_losses
from cavmae_ds.tasks.finetune.plan import FinetunePlan

log = logging.getLogger(__name__)

SCORES = "validation.json"
"""In the run folder: the curves of each epoch that was validated, and the best of them."""


class Validated(NamedTuple):
    """What came out."""

    loss: float
    """Mean over all clips, of the kind that is trained."""
    scores: Classification


class ClassifierValidation:
    """Loss and scores of the validation clips. Called by all ranks together."""

    def __init__(
        self,
        clips: ValidationClips,
        cfg: EvaluateConfig,
        loss: ClassificationLossConfig,
        numbers: FinetunePlan,
        world: World,
        engine: Any,
        *,
        mode: str,
        run_dir: Path,
    ):
        """clips: to validate on. loss: of which only the kind counts. mode: classifier.mode."""
        self._clips, self._cfg, self._loss, self._numbers = clips, cfg, loss, numbers
        self._world, self._engine, self._mode, self._run_dir = world, engine, mode, run_dir
        self._groups = groups_of(clips.places, cfg.batch)

    def after(self, step: int) -> dict[str, float]:
        """Validate if an epoch ends with this step and it is due, or the run ends: curves, on the first rank only."""
        epoch, inside = divmod(step, self._numbers.steps_per_epoch)
        if inside or (epoch % self._cfg.every_epochs and step < self._numbers.total_steps):
            return {}
        found = self()
        if found is None:
            return {}
        points = curves(found)
        note_epoch(self._run_dir / SCORES, epoch, points, self._cfg.metric)
        return {f"validation/{name}": value for name, value in points.items()}

    @torch.no_grad()
    def __call__(self) -> Validated | None:
        """Of all validation clips, on the first rank; None on the others.

        Raises DataError for a clip that is damaged, or if no clip has a class.
        """
        classes = self._numbers.classes
        loss, probabilities, labels = 0.0, [torch.zeros(0, classes)], []
        with evaluating(self._engine):
            for (audio, images, _, batch), counted in self._clips.batches(self._groups):
                logits = self._engine(audio, images, self._mode).float()
                if counted:
                    wanted = targets(batch, classes, smoothing=0).to(logits.device)
                    loss += len(wanted) * classification_losses(logits, wanted, self._loss).total.item()
                    probabilities.append(class_probabilities(logits, self._loss.kind).cpu())
                    labels += batch.labels
        found = from_all_ranks((loss, torch.cat(probabilities), labels))
        if not self._world.is_first:
            return None
        losses, parts, lists = zip(*found, strict=True)
        truth = one_hot([clip for of_rank in lists for clip in of_rank], classes)
        try:
            return Validated(math.fsum(losses) / len(truth), classification_scores(truth, torch.cat(parts)))
        except ValueError as error:
            raise DataError(f"validation is not possible: {error}") from error


def class_probabilities(logits: Tensor, loss: Literal["bce", "ce"]) -> Tensor:
    """Logits [B, C] to probabilities as the loss takes them: each class for itself, or all together 1."""
    return logits.sigmoid() if loss == "bce" else logits.softmax(1)


def curves(found: Validated) -> dict[str, float]:
    """One number each; what is not defined, or infinite, is left out."""
    scores = found.scores
    points = {
        "total": found.loss,
        "map": scores.mean_average_precision,
        "accuracy": scores.accuracy,
        "auc": scores.mean_auc,
        "d_prime": scores.d_prime,
    }
    return {name: value for name, value in points.items() if value is not None and math.isfinite(value)}


def note_epoch(path: Path, epoch: int, points: dict[str, float], metric: str) -> None:
    """Add an epoch to the file: `epochs`, in order, and `best_epoch`, the earliest that is best in the metric.

    What the file tells of this epoch and later ones is from before a resume, and goes. A damaged file is kept beside
    the new one, as .damaged.
    """
    now = {"epoch": epoch, **points}
    try:
        before = json.loads(path.read_bytes())["epochs"] if path.is_file() else []
        epochs = [noted for noted in before if noted["epoch"] < epoch] + [now]
        best = max(epochs, key=lambda noted: noted[metric])["epoch"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        damaged = path.replace(path.with_name(f"{path.name}.damaged"))
        log.warning("%s is damaged (%s: %s) and is now %s", path, type(error).__name__, error, damaged)
        epochs, best = [now], epoch
    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({"metric": metric, "best_epoch": best, "epochs": epochs}, indent=1))
    except ConfigError as error:  # a full disk costs a note, not the run
        log.warning("%s", error)

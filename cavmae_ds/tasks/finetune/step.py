"""One optimizer step of finetuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from cavmae_ds.data.transforms.augment import targets
from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.losses import classification_losses
from cavmae_ds.tasks.finite_check import evidence
from cavmae_ds.tasks.task import StepOutput
from cavmae_ds.training.engine import back_propagate, take_step


class FinetuneStep:
    """Built once, then called with the micro-batches of one step after another."""

    def __init__(self, cfg: FinetuneConfig, classes: int, engine: Any):
        self._cfg, self._classes, self._engine = cfg, classes, engine

    def __call__(self, micro_batches: Iterable[Ready]) -> StepOutput:
        """One optimizer step of this rank's micro-batches."""
        terms, bad, found = [], [], []
        for ready in micro_batches:
            wanted = targets(ready.batch, self._classes, self._cfg.loss.label_smoothing).to(ready.audio.device)
            logits = self._engine(ready.audio, ready.frames, self._cfg.classifier.mode)
            losses = classification_losses(logits, wanted, self._cfg.loss)
            back_propagate(self._engine, losses.total)
            grad_norm = take_step(self._engine)
            terms.append(torch.stack(losses).detach().double())
            bad += ready.batch.bad
            ways = {"sound": ready.audio, "frame": ready.frames, "logits": logits}
            found.append(evidence(ready.batch, ways, losses._asdict()))
        means = torch.stack(terms).mean(0)
        return StepOutput(means[0], means, grad_norm, bad, not self._engine.was_step_applied(), found)

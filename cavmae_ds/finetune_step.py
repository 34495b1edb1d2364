"""One optimizer step of finetuning. B clips of a micro-batch, C classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae_ds.config import FinetuneConfig
from cavmae_ds.config.sections.classify import ClassificationLossConfig
from cavmae_ds.data.augment import targets
from cavmae_ds.data.front_end import Ready
from cavmae_ds.engine import take_step
from cavmae_ds.step import StepDone


class ClassificationLosses(NamedTuple):
    """Of a micro-batch; their mean over micro-batches and ranks is the global batch's."""

    total: Tensor
    accuracy: Tensor
    """Share of clips whose likeliest class is their (largest) target."""


def classification_losses(logits: Tensor, wanted: Tensor, cfg: ClassificationLossConfig) -> ClassificationLosses:
    """Logits and targets [B, C] to one mean over the clips (and classes, for bce), in float32 or wider.

    Targets may be soft: mixed or smoothed (spec/cav-mae.md 4.2).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = wanted.to(logits.dtype)
    measure = functional.binary_cross_entropy_with_logits if cfg.kind == "bce" else functional.cross_entropy
    right = logits.detach().argmax(1) == wanted.argmax(1)
    return ClassificationLosses(measure(logits, wanted), right.to(logits.dtype).mean())


class FinetuneStep:
    """Built once, then called with the micro-batches of one step after another."""

    def __init__(self, cfg: FinetuneConfig, classes: int, engine: Any):
        self._cfg, self._classes, self._engine = cfg, classes, engine

    def __call__(self, micro_batches: Iterable[Ready]) -> StepDone:
        """One optimizer step of this rank's micro-batches."""
        terms, bad = [], []
        for ready in micro_batches:
            wanted = targets(ready.batch, self._classes, self._cfg.loss.label_smoothing).to(ready.audio.device)
            logits = self._engine(ready.audio, ready.images, self._cfg.classifier.mode)
            losses = classification_losses(logits, wanted, self._cfg.loss)
            self._engine.backward(losses.total)
            grad_norm = take_step(self._engine)
            terms.append(torch.stack(losses).detach().double())
            bad += ready.batch.bad
        means = ClassificationLosses(*torch.stack(terms).mean(0))
        return StepDone(means, None, grad_norm, bad)

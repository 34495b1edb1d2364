"""The loss of finetuning, a pure function of tensors.

B clips, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.data.transforms.augment import targets
from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.tasks.finetune.config import ClassificationLossConfig


class ClassificationLosses(NamedTuple):
    """Of a micro-batch; their mean over micro-batches and ranks is the global batch's."""

    total: Tensor
    accuracy: Tensor
    """Share of clips whose likeliest class is their (largest) target."""


def run_classifier(
    model: Any, ready: Ready, mode: str, cfg: ClassificationLossConfig
) -> tuple[Tensor, ClassificationLosses]:
    """Logits [B, C] of a micro-batch in a mode of the classifier, and their losses."""
    logits = model(ready.audio, ready.frames, mode)
    wanted = targets(ready.batch, logits.shape[1], cfg.label_smoothing).to(logits.device)
    return logits, classification_losses(logits, wanted, cfg)


def classification_losses(logits: Tensor, wanted: Tensor, cfg: ClassificationLossConfig) -> ClassificationLosses:
    """Logits and targets [B, C] to one mean over the clips (and classes, for bce), in float32 or wider.

    Targets may be soft: mixed or smoothed (spec/cav-mae.md 4.2).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = wanted.to(logits.dtype)
    measure = F.binary_cross_entropy_with_logits if cfg.kind == "bce" else F.cross_entropy
    right = logits.detach().argmax(1) == wanted.argmax(1)
    return ClassificationLosses(measure(logits, wanted), right.to(logits.dtype).mean())

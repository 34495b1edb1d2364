"""The forward pass of a micro-batch: what training, validation and plans run alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cavmae_ds.config.sections.base import Section
from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.models import family_of
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks.pretrain.config import LossConfig
from cavmae_ds.tasks.pretrain.losses import reconstruction_loss, term_names


@dataclass(frozen=True)
class MaskedForward:
    """Runs a family's pretraining module on masked clips."""

    model: ModelSection
    mask: Section
    loss: LossConfig
    seed: int
    """train.seed: with a clip's index and repeat it decides the clip's masks."""

    def __call__(
        self, module: Any, ready: Ready, mae: bool = True, on_pooled: Callable | None = None
    ) -> PretrainOutput:
        """What the losses need. mae=False leaves out the decoder; on_pooled: see CAVMAE.forward."""
        return module(
            ready.audio,
            ready.frames,
            family_of(self.model.family).draw_masks(self.model, self.mask, self.seed, *ready.keys),
            mae=mae and self.loss.mae_weight > 0,
            contrastive=self.loss.contrastive_weight > 0,
            on_pooled=on_pooled,
            decoder_loss=partial(reconstruction_loss, cfg=self.loss),
        )

    def terms(self, direction: str) -> tuple[str, ...]:
        """What is measured of it. direction: contrastive.direction."""
        return term_names(family_of(self.model.family).targets(self.model), direction)

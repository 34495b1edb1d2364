"""The forward pass of a micro-batch: what training and plans run alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.models import family_of
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.losses import reconstruction_loss


def run_model(
    model: Any, cfg: PretrainConfig, ready: Ready, mae: bool = True, on_pooled: Callable | None = None
) -> PretrainOutput:
    """What the losses need of masked clips. mae=False leaves out the decoder; on_pooled: see the family's module."""
    draw_masks, weights = family_of(cfg.model.family).draw_masks, cfg.loss
    return model(
        ready.audio,
        ready.frames,
        draw_masks(cfg.model, cfg.mask, cfg.train.seed, *ready.keys),
        mae=mae and weights.mae_weight > 0,
        contrastive=weights.contrastive_weight > 0,
        on_pooled=on_pooled,
        decoder_loss=partial(reconstruction_loss, cfg=weights),
    )

"""The losses of pretraining, as pure functions of tensors.

B clips; L patches of P values; D width of the contrastive rows; N candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.config import ContrastiveConfig, LossConfig
from cavmae_ds.kernels.contrastive import Contrast, contrastive, contrastive_both
from cavmae_ds.kernels.masked_mse import masked_mse
from cavmae_ds.model.cavmae import PretrainOutput
from cavmae_ds.model.masking import MaskPlan
from cavmae_ds.model.patches import Picture


class Gathered(NamedTuple):
    """The contrastive candidates: unit rows of every clip that this rank's clips are compared with."""

    audio_all: Tensor
    """[N, D] in rank order."""
    image_all: Tensor | None
    """[N, D]; None will do for direction v2a, which compares with sounds only."""
    first_row: int
    """Row of this rank's first clip in them."""


class PretrainLosses(NamedTuple):
    """Scalars of one micro-batch. Parts that are switched off are 0."""

    total: Tensor
    """mae_weight * (mae_audio + mae_image) + contrastive_weight * contrastive: the one to back-propagate."""
    mae_audio: Tensor
    """Unweighted, like the next two."""
    mae_image: Tensor
    contrastive: Tensor
    in_batch_accuracy: Tensor
    """See Contrast.accuracy: comparable only between equal numbers of candidates."""


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [B, D] scaled to length 1, in float32 or wider."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)


def own_candidates(output: PretrainOutput) -> Gathered:
    """The clips of this output as the only candidates: one process, or negatives of the rank alone."""
    assert output.audio_pooled is not None and output.image_pooled is not None
    return Gathered(unit_rows(output.audio_pooled), unit_rows(output.image_pooled), first_row=0)


def contrastive_loss(
    audio: Tensor,
    image: Tensor,
    audio_all: Tensor,
    image_all: Tensor | None,
    first_row: int,
    temperature: float,
    direction: str,
) -> Contrast:
    """InfoNCE of this rank's unit rows [B, D] against all candidates' [N, D], mean over the rank's clips.

    Clip i's partner is candidate first_row + i. direction v2a, the official one (spec/cav-mae.md 1.8): each
    image finds its sound among all sounds; both: the mean of that and of each sound finding its image. As many
    candidates as clips are the clips themselves: both directions then share one pass, and gradients go to the clips.
    """
    if direction == "v2a":
        return contrastive(image, audio_all, first_row, temperature)
    if direction != "both":
        raise ValueError(f"contrastive.direction must be 'v2a' or 'both', got {direction!r}")
    assert image_all is not None, "direction both compares with images too"
    if len(image) == len(audio_all):
        return contrastive_both(audio, image, temperature)
    to_audio = contrastive(image, audio_all, first_row, temperature)
    to_image = contrastive(audio, image_all, first_row, temperature)
    return Contrast((to_audio.loss + to_image.loss) / 2, to_audio.accuracy)


def pretrain_losses(
    output: PretrainOutput,
    gathered: Gathered | None,
    loss_cfg: LossConfig,
    contrastive_cfg: ContrastiveConfig,
) -> PretrainLosses:
    """All losses of one micro-batch of one rank. gathered may be None when the contrastive weight is 0.

    A loss whose weight is 0 is not computed: its output may be None and its value is 0.
    """
    mae_audio = mae_image = contrastive = accuracy = torch.zeros((), device=output.audio.pixels.device)
    if loss_cfg.mae_weight:
        assert output.audio_prediction is not None and output.image_prediction is not None
        mae_audio = _reconstruction(output.audio_prediction, output.audio, output.plans.audio, loss_cfg)
        mae_image = _reconstruction(output.image_prediction, output.image, output.plans.image, loss_cfg)
    if loss_cfg.contrastive_weight:
        assert output.audio_pooled is not None and output.image_pooled is not None and gathered is not None
        contrastive, accuracy = contrastive_loss(
            unit_rows(output.audio_pooled),
            unit_rows(output.image_pooled),
            *gathered,
            temperature=contrastive_cfg.temperature,
            direction=contrastive_cfg.direction,
        )
    total = loss_cfg.mae_weight * (mae_audio + mae_image) + loss_cfg.contrastive_weight * contrastive
    return PretrainLosses(total, mae_audio, mae_image, contrastive, accuracy)


def _reconstruction(prediction: Tensor, picture: Picture, plan: MaskPlan, cfg: LossConfig) -> Tensor:
    pixels, grid, mean, std = picture
    return masked_mse(prediction, pixels, plan.hidden, grid, mean, std, cfg.normalise_pixels)

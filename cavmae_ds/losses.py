"""The losses of pretraining, as pure functions of tensors.

B clips; L patches of P values; D width of the contrastive rows; N candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.config import ContrastiveConfig, LossConfig
from cavmae_ds.model.cavmae import PretrainOutput


class Gathered(NamedTuple):
    """The contrastive candidates: unit rows of every clip that this rank's clips are compared with."""

    audio_all: Tensor
    """[N, D] in rank order."""
    image_all: Tensor | None
    """[N, D]; None will do for direction v2a, which compares with sounds only."""
    first_row: int
    """Row of this rank's first clip in them."""


class Contrast(NamedTuple):
    """What one contrastive comparison gives; both scalars."""

    loss: Tensor
    accuracy: Tensor
    """Share of images whose most similar sound is their own; no gradient."""


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


def masked_mse(prediction: Tensor, patches: Tensor, mask: Tensor, normalise: bool) -> Tensor:
    """Mean squared error over hidden patches: prediction, patches [B, L, P]; mask [B, L], 1 = hidden.

    With normalise each target patch is brought to mean 0 and variance 1 first (unbiased variance, plus 1e-6).
    Computed in float32 or wider; scalar (spec/cav-mae.md 1.8). NaN when nothing is hidden.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    target = patches.to(wide)
    if normalise:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased, [B, L, 1]
        target = (target - mean) / (variance + 1e-6).sqrt()
    per_patch = (prediction.to(wide) - target).square().mean(-1)  # [B, L]
    return (per_patch * mask).sum() / mask.sum()


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
    image finds its sound among all sounds; both: the mean of that and of each sound finding its image.
    """
    partner = first_row + torch.arange(len(image), device=image.device)  # [B]
    to_audio = image @ audio_all.T / temperature  # [B, N]
    loss = F.cross_entropy(to_audio, partner)
    accuracy = (to_audio.detach().argmax(1) == partner).to(loss.dtype).mean()
    if direction == "both":
        assert image_all is not None, "direction both compares with images too"
        loss = (loss + F.cross_entropy(audio @ image_all.T / temperature, partner)) / 2
    elif direction != "v2a":
        raise ValueError(f"contrastive.direction must be 'v2a' or 'both', got {direction!r}")
    return Contrast(loss, accuracy)


def pretrain_losses(
    output: PretrainOutput,
    gathered: Gathered | None,
    loss_cfg: LossConfig,
    contrastive_cfg: ContrastiveConfig,
) -> PretrainLosses:
    """All losses of one micro-batch of one rank. gathered may be None when the contrastive weight is 0.

    A loss whose weight is 0 is not computed: its output may be None and its value is 0.
    """
    mae_audio = mae_image = contrastive = accuracy = torch.zeros((), device=output.audio_patches.device)
    if loss_cfg.mae_weight:
        assert output.audio_prediction is not None and output.image_prediction is not None
        (audio_plan, image_plan), normalise = output.plans, loss_cfg.normalise_pixels
        mae_audio = masked_mse(output.audio_prediction, output.audio_patches, audio_plan.mask, normalise)
        mae_image = masked_mse(output.image_prediction, output.image_patches, image_plan.mask, normalise)
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

"""The losses of pretraining and finetuning, as pure functions of tensors.

B clips; L patches of P values; D width of the contrastive rows; N candidates; C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.kernels.contrastive import Contrast, contrastive, contrastive_both, mean_of_directions, unit_rows
from cavmae_ds.kernels.masked_mse import masked_mse
from cavmae_ds.models.common.decoder_chunks import Reconstruction
from cavmae_ds.models.common.output import PretrainOutput, Target
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig


class PretrainLosses(NamedTuple):
    """Scalars of one micro-batch. Parts that are switched off are 0."""

    total: Tensor
    """mae_weight * (the weighted sum of mae) + contrastive_weight * contrastive: the one to back-propagate."""
    mae: Mapping[str, Tensor]
    """Of each target of the model, by its name, unweighted."""
    contrastive: Tensor
    """Unweighted."""
    in_batch_accuracy: Tensor
    """Mean of the directions in the loss. Like the next two comparable only between equal numbers of candidates."""
    v2a_accuracy: Tensor
    """Share of images whose best audio among all candidates is their own."""
    a2v_accuracy: Tensor
    """Share of audios whose best image is their own; 0 unless contrastive.direction is both."""

    def terms(self) -> dict[str, Tensor]:
        """All scalars by name, in the order of term_names."""
        total, mae, *others = self
        names = term_names(mae, "both")
        return dict(zip(names, (total, *mae.values(), *others), strict=True))


def term_names(targets: Iterable[str], direction: str) -> tuple[str, ...]:
    """Names of what is measured of a step, total first: without the accuracy of a direction that is not in the loss."""
    a2v = ("a2v_accuracy",) if direction == "both" else ()
    return "total", *(f"mae_{target}" for target in targets), "contrastive", "in_batch_accuracy", "v2a_accuracy", *a2v


def contrast_within(output: PretrainOutput, cfg: ContrastiveConfig) -> Contrast:
    """The clips of this output compared with one another and nobody else."""
    assert output.audio_pooled is not None and output.image_pooled is not None
    audio, image = unit_rows(output.audio_pooled), unit_rows(output.image_pooled)
    return contrastive_loss(audio, image, audio, image, 0, cfg.temperature, cfg.direction)


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
    image finds its sound among all sounds; both: the mean of that and of each sound finding its image, in loss and
    accuracy (same place). Images are the queries: forward_accuracy is v2a. As many
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
    return mean_of_directions(to_audio, to_image)


def reconstruction_loss(output: PretrainOutput, cfg: LossConfig) -> Reconstruction:
    """Masked mean squared error of the predictions: a mean over hidden patches, of which each clip has as many."""
    parts = tuple(_target_loss(target, cfg) for target in output.targets)
    weighted = (
        part if target.weight == 1 else target.weight * part for target, part in zip(output.targets, parts, strict=True)
    )
    return Reconstruction(reduce(add, weighted), parts)


def pretrain_losses(output: PretrainOutput, contrast: Contrast | None, cfg: LossConfig) -> PretrainLosses:
    """All losses of one micro-batch of one rank. contrast may be None when the contrastive weight is 0.

    A loss whose weight is 0 is not computed: its output may be None and its value is 0.
    """
    zero = torch.zeros((), device=output.targets[0].source.pixels.device)
    rebuilt = Reconstruction(zero, (zero,) * len(output.targets))
    if cfg.mae_weight:
        rebuilt = output.reconstruction or reconstruction_loss(output, cfg)
    if not cfg.contrastive_weight:
        contrast = Contrast(zero, zero, zero, zero)
    assert contrast is not None
    total = cfg.mae_weight * rebuilt.total + cfg.contrastive_weight * contrast.loss
    mae = {target.name: part for target, part in zip(output.targets, rebuilt.parts, strict=True)}
    return PretrainLosses(total, mae, *contrast)


def _target_loss(target: Target, cfg: LossConfig) -> Tensor:
    assert target.prediction is not None
    pixels, grid, mean, std = target.source
    normalised = cfg.normalise_pixels if target.normalised is None else target.normalised
    return masked_mse(target.prediction, pixels, target.plan.hidden, grid, mean, std, normalised)

"""Patches as given, as seen by the encoder, and with what was hidden filled in by the model (spec/cav-mae.md 5.3).

n clips, L patches of P values, H of them hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.models.common.output import Target
from cavmae_ds.models.common.patches import patches_to_audio


class Stages(NamedTuple):
    """One modality of n clips, each [n, L, P] float32 on the CPU, in the normalised values that the model reads."""

    given: Tensor
    seen: Tensor
    """Hidden patches are NaN."""
    rebuilt: Tensor
    """Hidden patches as predicted; the others are bit by bit those given."""


def stages(target: Target, normalised: bool, clips: int) -> Stages:
    """The first clips of a batch with what was predicted of their hidden patches.

    normalised: unless the target says otherwise, each patch is predicted up to its mean and variance
    (loss.normalise_pixels). Those two numbers are then taken from the input, as pictures of masked autoencoders usually
    do.
    """
    assert target.prediction is not None
    normalised = normalised if target.normalised is None else target.normalised
    first = target.source._replace(pixels=target.source.pixels[:clips].cpu())
    given = first.patches(first.every_patch(), torch.float32)
    hidden = target.plan.hidden[:clips].cpu()[..., None].expand(-1, -1, given.shape[2])  # [n, H, P]
    predicted = target.prediction[:clips].detach().float().cpu()  # [n, H, P]
    if normalised:
        wanted = given.gather(1, hidden)
        predicted = predicted * (wanted.var(-1, keepdim=True) + 1e-6).sqrt() + wanted.mean(-1, keepdim=True)
    return Stages(given, given.scatter(1, hidden, torch.nan), given.scatter(1, hidden, predicted))


def log_mel_stages(target: Target, normalised: bool, clips: int) -> list[Tensor]:
    """The stages of a target of one channel as raw log-mels, each [n, T, mel]."""
    (mean,), (std,) = target.source.mean, target.source.std
    return [patches_to_audio(part, target.source.grid) * std + mean for part in stages(target, normalised, clips)]

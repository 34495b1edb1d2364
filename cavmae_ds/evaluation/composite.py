"""Patches as given, as seen by the encoder, and with what was hidden filled in by the model (spec/cav-mae.md 5.3).

n clips, L patches of P values, H of them hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.models.common.masking import MaskPlan
from cavmae_ds.models.common.patches import Picture


class Stages(NamedTuple):
    """One modality of n clips, each [n, L, P] float32 on the CPU, in the normalised values that the model reads."""

    given: Tensor
    seen: Tensor
    """Hidden patches are NaN."""
    rebuilt: Tensor
    """Hidden patches as predicted; the others are bit by bit those given."""


def stages(picture: Picture, prediction: Tensor, plan: MaskPlan, normalised: bool, clips: int) -> Stages:
    """The first clips of a batch, and the predictions [B, H, P] of the patches that the plan hides.

    normalised: the model predicts each patch up to its mean and variance (loss.normalise_pixels). Those two numbers are
    then taken from the input, as pictures of masked autoencoders usually do.
    """
    first = Picture(picture.pixels[:clips].cpu(), *picture[1:])
    given = first.patches(first.every_patch(), torch.float32)
    hidden = plan.hidden[:clips].cpu()[..., None].expand(-1, -1, given.shape[2])  # [n, H, P]
    predicted = prediction[:clips].detach().float().cpu()  # [n, H, P]
    if normalised:
        target = given.gather(1, hidden)
        predicted = predicted * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    return Stages(given, given.scatter(1, hidden, torch.nan), given.scatter(1, hidden, predicted))

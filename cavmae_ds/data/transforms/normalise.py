"""How raw log-mels and pixels become what the model was trained on (spec/cav-mae.md 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

AUDIO_MEAN, AUDIO_STD = -5.081, 4.4849
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, red, green, blue


class Normalisation(NamedTuple):
    """(x - mean) / std per channel; bytes count as 0 ... 1. The defaults leave what is normalised already.

    The log-mel's padding of 0.0 becomes +1.13, louder than silence, as in the official model.
    """

    audio_mean: tuple[float] = (0.0,)
    audio_std: tuple[float] = (1.0,)
    image_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def training_normalisation(audio_mean: float = AUDIO_MEAN, audio_std: float = AUDIO_STD) -> Normalisation:
    """For raw log-mels and raw RGB frames."""
    return Normalisation((audio_mean,), (audio_std,), IMAGE_MEAN, IMAGE_STD)


def denormalise_images(images: Tensor) -> Tensor:
    """Normalised [B, 3, H, W] back to pixels, rounded and clipped to uint8, for pictures."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

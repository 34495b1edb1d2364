"""Raw log-mels and pixels to what the model was trained on (spec/cav-mae.md 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

AUDIO_MEAN, AUDIO_STD = -5.081, 4.4849
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, red, green, blue


def normalise_audio(log_mel: Tensor, mean: float = AUDIO_MEAN, std: float = AUDIO_STD) -> Tensor:
    """(x - mean) / std; the padding of 0.0 becomes +1.13, louder than silence, as in the official model."""
    return (log_mel - mean) / std


def normalise_images(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32: 0 ... 255 to 0 ... 1, then ImageNet's mean and deviation per channel."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
    return (images.float() / 255 - mean) / std


def denormalise_images(images: Tensor) -> Tensor:
    """The inverse of normalise_images, rounded and clipped to uint8, for pictures."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

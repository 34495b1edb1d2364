"""From stored sizes to what the model reads: batched on the device, so that decoding is all a CPU does per clip."""

from __future__ import annotations

import torch
from torch import Tensor

from cavmae_ds.config import DataConfig, ModelConfig
from cavmae_ds.data.normalise import normalise_audio, normalise_images
from cavmae_ds.data.spectrogram import LogMel
from cavmae_ds.data.stream import Batch


class FrontEnd:
    """Batch -> normalised log-mel [B, T, mel] and frames [B, 3, H, W], float32, on the device."""

    def __init__(self, model: ModelConfig, data: DataConfig, device: torch.device):
        self._frames, self._data, self._device = model.audio_frames, data, device
        self._log_mel = LogMel(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        waveform, n_samples, images = (
            part.to(self._device, non_blocking=True) for part in (batch.audio, batch.n_samples, batch.images)
        )
        mel = self._log_mel(waveform, n_samples, self._frames)
        return normalise_audio(mel, self._data.audio_mean, self._data.audio_std), normalise_images(images)

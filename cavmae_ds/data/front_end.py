"""From stored sizes to what the model reads: batched on the device, so that decoding is all a CPU does per clip."""

from __future__ import annotations

import torch
from torch import Tensor

from cavmae_ds.config import ModelConfig
from cavmae_ds.data.spectrogram import LogMel
from cavmae_ds.data.stream import Batch


class FrontEnd:
    """Batch -> raw log-mel [B, T, mel] float32 and frames [B, 3, H, W] uint8 on the device; the model normalises."""

    def __init__(self, model: ModelConfig, device: torch.device):
        self._frames, self._device = model.audio_frames, device
        self._log_mel = LogMel(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        waveform, n_samples, images = (
            part.to(self._device, non_blocking=True) for part in (batch.audio, batch.n_samples, batch.images)
        )
        return self._log_mel(waveform, n_samples, self._frames), images

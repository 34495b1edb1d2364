"""Kaldi's log-mel filter bank for batches of 16 kHz sound, on the device that trains.

Source of the maths: spec/data-path.md 2 and spec/cav-mae.md 3.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FFT_SAMPLES = 512
MEL_BINS = 128
LOWEST_HZ, HIGHEST_HZ = 20.0, 8_000.0
PRE_EMPHASIS = 0.97
ENERGY_FLOOR = torch.finfo(torch.float32).eps
INT16_SCALE = 32_768
CLIPS_AT_ONCE = 64  # on CUDA; each clip takes about 8 MB of scratch


def frames_of(n_samples: Tensor) -> Tensor:
    """Whole windows in clips of n_samples [B], int64: windows of 25 ms every 10 ms, none that sticks out."""
    rows = 1 + torch.div(n_samples - WINDOW_SAMPLES, HOP_SAMPLES, rounding_mode="floor")
    return rows.clamp(min=0)


def mel_bank() -> Tensor:
    """Kaldi's 128 triangles over the bins of the spectrum, [257, 128] float32.

    They are spaced evenly in mel(f) = 1127 ln(1 + f / 700) between 20 Hz and 8 kHz; the Nyquist bin has no
    weight. Triangle 3 is so narrow that no bin falls into it. In float32 throughout, as kaldi and torchaudio compute
    them: a more exact bank is up to 1e-4 further from what official weights were trained on.
    """
    lowest, highest = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOWEST_HZ, HIGHEST_HZ))
    spacing = (highest - lowest) / (MEL_BINS + 1)
    left = lowest + spacing * torch.arange(MEL_BINS)  # [M]
    hz = torch.arange(FFT_SAMPLES // 2) * (SAMPLE_RATE_HZ / FFT_SAMPLES)
    above_left = (1127.0 * torch.log(1.0 + hz / 700.0)).unsqueeze(1) - left  # [256, M]
    triangles = torch.minimum(above_left / spacing, 2 - above_left / spacing).clamp(min=0)
    return torch.cat([triangles, triangles.new_zeros(1, MEL_BINS)])


class LogMel:
    """The front end with its constants on one device."""

    def __init__(self, device: torch.device | str = "cpu"):
        # The mel product runs in float64: exact, and out of reach of whatever TF32, bf16 or autocast is set.
        self.bank = mel_bank().double().to(device)  # [257, M]
        self.window = torch.hann_window(WINDOW_SAMPLES, periodic=False, device=device)

    def __call__(self, waveform: Tensor, n_samples: Tensor, frames: int) -> Tensor:
        """Log-mels [B, frames, 128] float32 of waveforms [B, N] of which the first n_samples [B] are sound.

        int16 waveforms are divided by 32768, float ones lie in [-1, 1]. Longer clips are cut after `frames`
        rows; rows that a clip has no sound for are 0.0 (not silence, which is -15.94), so a clip of fewer
        than 400 samples is all 0.0. Tensors lie on the device of the constants.
        """
        at_once = CLIPS_AT_ONCE if waveform.is_cuda else 1  # one clip's scratch fits the CPU's cache
        out = torch.zeros(len(waveform), frames, MEL_BINS, device=waveform.device)
        if waveform.shape[1] < WINDOW_SAMPLES:
            return out
        with torch.autocast(waveform.device.type, enabled=False):
            for start in range(0, len(waveform), at_once):
                part = slice(start, start + at_once)
                rows = self._rows(waveform[part], n_samples[part], frames)  # [b, R, M]
                row = torch.arange(rows.shape[1], device=rows.device)
                real = row < frames_of(n_samples[part]).unsqueeze(1)  # [b, R]
                out[part, : rows.shape[1]] = torch.where(real.unsqueeze(2), rows, 0.0)
        return out

    def _rows(self, waveform: Tensor, n_samples: Tensor, frames: int) -> Tensor:
        """Log-mel rows [b, R, M], R <= frames, of every window of the padded clips."""
        sound = waveform.float() / (INT16_SCALE if waveform.dtype == torch.int16 else 1)
        real = torch.arange(sound.shape[1], device=sound.device) < n_samples.unsqueeze(1)  # [b, N]
        mean = (sound * real).sum(1, keepdim=True) / n_samples.clamp(min=1).unsqueeze(1)
        windows = (sound - mean).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)[:, :frames]  # [b, R, 400]
        windows = windows - windows.mean(2, keepdim=True)
        emphasised = windows.clone()
        emphasised[..., 1:] -= PRE_EMPHASIS * windows[..., :-1]
        emphasised[..., 0] *= 1 - PRE_EMPHASIS  # the first sample is its own predecessor
        spectrum = torch.fft.rfft(emphasised * self.window, n=FFT_SAMPLES)  # [b, R, 257]
        power = spectrum.real.square() + spectrum.imag.square()
        energy = (power.double() @ self.bank).float()  # [b, R, M]
        return energy.clamp(min=ENERGY_FLOOR).log()

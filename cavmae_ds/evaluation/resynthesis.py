"""From a log-mel back to sound: what it holds can be heard, the phase is guessed (Griffin and Lim, 1984)."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from cavmae_ds.data.transforms.log_mel import (
    ENERGY_FLOOR,
    FFT_SAMPLES,
    HOP_SAMPLES,
    PRE_EMPHASIS,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    mel_bank,
)
from cavmae_ds.errors import ConfigError, pip_install

ROUNDS = 64  # of guessing the phase: on synthetic clips 32 are a fifth further from the log-mel, 200 a fifth closer
EDGE = 2  # rows repeated at both ends: a sound's first and last half window are covered by no other


def check_torchaudio() -> None:
    """Raises ConfigError if what guesses phases was built for another torch: then its library does not load."""
    try:
        import torchaudio.functional  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        wrong, command = str(error).partition("\n")[0], pip_install("torch", "torchaudio")
        raise ConfigError(
            f"--sound: torchaudio cannot be loaded beside this torch: {wrong}; {command}, or leave --sound out"
        ) from error


def sound_of(log_mel: Tensor) -> Tensor:
    """A raw log-mel [T, 128] (natural log, no padding) to T windows of sound: [160 (T - 1) + 400] float32 at 16 kHz.

    The spectrum is the smallest that gives these mel energies. Without the constant offset, which no log-mel holds;
    the same each time. T must be at least 1.
    """
    from torchaudio import functional

    energy = log_mel.T.double().exp()  # [128, T]
    # Least squares, smallest first: with triangles this narrow it stays smooth, where non-negative least squares
    # gives spectra of lone bins that no sound has. Triangle 3 is empty, which the driver must stand.
    power = torch.linalg.lstsq(mel_bank().T.double(), energy, driver="gelsd").solution.clamp(min=0).float()  # [257, T]
    padded = torch.nn.functional.pad(power[None], (EDGE, EDGE), mode="replicate")[0]
    emphasised = functional.griffinlim(
        padded, torch.hann_window(WINDOW_SAMPLES, periodic=False), FFT_SAMPLES, HOP_SAMPLES, WINDOW_SAMPLES,
        power=2.0, n_iter=ROUNDS, momentum=0.99, length=None, rand_init=False,
    )  # fmt: skip
    start = EDGE * HOP_SAMPLES - WINDOW_SAMPLES // 2  # torch centres its windows, Kaldi's begin where the sound does
    samples = HOP_SAMPLES * (len(log_mel) - 1) + WINDOW_SAMPLES
    return functional.deemphasis(emphasised[start : start + samples], PRE_EMPHASIS)


def silent_where_hidden(log_mel: Tensor) -> Tensor:
    """NaN becomes what the front end says of digital silence."""
    return log_mel.nan_to_num(torch.tensor(ENERGY_FLOOR).log().item())


def write_wav(path: Path, sound: Tensor) -> None:
    """A float sound [N] as 16 bits a sample; what is louder than full scale is cut."""
    content = io.BytesIO()  # libsndfile does not say why a file cannot be written
    soundfile.write(content, sound.numpy(), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    path.write_bytes(content.getvalue())

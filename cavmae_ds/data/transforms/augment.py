"""What finetuning does to clips: mixed in pairs, bands hidden, noise, shifted in time (spec/cav-mae.md 3.6).

Every draw hangs on (seed, turn, clip), so a clip is augmented alike on every world and after every resume. Workers
only fetch partners; the arithmetic is batched on the device. B clips, M of them mixed; N samples, T frames, F mel bins,
C classes. Log-mels are raw here: the model normalises them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.data.format.clips import Batch, Partners
from cavmae_ds.data.transforms.log_mel import INT16_SCALE
from cavmae_ds.distributed.per_sample_rng import Stream, clip_noise, clip_uniform

BETA_DRAWS = 19
"""The middle one of 2a - 1 uniform draws follows Beta(a, a): here a = 10, exactly, and nothing is ever drawn again."""


class PartnerDrawn(NamedTuple):
    """Whom a clip is mixed with."""

    place: int
    """Of the partner, anywhere in the data: mixing ignores balanced sampling, as the official program does."""
    share: float
    """Of the clip itself, Beta(10, 10)."""


def draw_partner(seed: int, turn: int, clip_index: int, rate: float, clips: int) -> PartnerDrawn | None:
    """A share `rate` of clips is mixed with one of `clips` others, all equally likely; None for the rest."""
    clip = torch.tensor([clip_index])
    decides, *uniforms = clip_uniform(seed, turn, clip, Stream.MIXUP, 1 + BETA_DRAWS)[0].tolist()
    if decides >= rate:
        return None
    place = clip_uniform(seed, turn, clip, Stream.PARTNER, 2)[0].double()  # 31 bits each: two for millions of clips
    share = sorted(uniforms)[BETA_DRAWS // 2]
    return PartnerDrawn(int((place[0] + place[1] * 2.0**-31).item() * clips) % clips, share)


def mix(waveform: Tensor, n_samples: Tensor, frames: Tensor, partners: Partners) -> tuple[Tensor, Tensor]:
    """Sounds [B, N] int16 and frames [B, T, 3, H, W] uint8 with their partners mixed in.

    Sounds, as float in [-1, 1], each without its mean, the partner padded with zeros or cut to the clip's length; the
    log-mel takes the mean off again. Frames, as float in [0, 1]. All tensors on one device.
    """
    row, own = partners.row, partners.share[:, None]  # [M], [M, 1]
    sounds = _centred(waveform, n_samples)  # [B, N]
    length = min(partners.audio.shape[1], sounds.shape[1])
    others = torch.zeros_like(sounds[row])  # [M, N]
    others[:, :length] = _centred(partners.audio, partners.n_samples)[:, :length]
    inside = torch.arange(sounds.shape[1], device=row.device) < n_samples[row, None]  # [M, N]
    sounds[row] = torch.where(inside, own * sounds[row] + (1 - own) * others, 0.0)
    mixed, share = frames.float() / 255, own[..., None, None, None]
    mixed[row] = share * mixed[row] + (1 - share) * (partners.frames.float() / 255)
    return sounds, mixed


def targets(batch: Batch, classes: int, smoothing: float) -> Tensor:
    """What the classifier is to say, [B, C] float32 on the CPU (spec/cav-mae.md 3.6, trap 22).

    Not mixed: smoothing / C everywhere, 1 - smoothing for the classes present. Mixed: smoothing / C everywhere, to
    which each of the two adds its share of 1 - smoothing. Raises ValueError for a class id that there is no class for.
    """
    wanted = torch.full((len(batch.labels), classes), smoothing / classes)
    for row, labels in zip(wanted, batch.labels, strict=True):
        row[_checked(labels, classes)] = 1 - smoothing
    if batch.partners:
        pairs = zip(batch.partners.row.tolist(), batch.partners.share.tolist(), batch.partners.labels, strict=True)
        for place, share, others in pairs:
            wanted[place] = smoothing / classes
            wanted[place, _checked(batch.labels[place], classes)] += share * (1 - smoothing)
            wanted[place, _checked(others, classes)] += (1 - share) * (1 - smoothing)
    return wanted


class SoundAugmentation:
    """SpecAugment, then noise and a shift, on raw log-mels."""

    def __init__(self, cfg: AugmentConfig, seed: int, audio_std: float):
        """audio_std: what the model divides log-mels by; the noise is meant for divided ones."""
        self._cfg, self._seed, self._std = cfg, seed, audio_std

    def __call__(self, log_mel: Tensor, epoch: Tensor, clip_index: Tensor) -> Tensor:
        """Log-mels [B, T, F] of these clips in this turn, changed."""
        drawn = clip_uniform(self._seed, epoch, clip_index, Stream.BANDS, 4)  # [B, 4]
        # Rows that a clip has no sound for are 0 in a raw log-mel, and so are hidden ones: louder than silence.
        log_mel = _hide(log_mel, 2, self._cfg.freqm, drawn[:, 0], drawn[:, 1])
        log_mel = _hide(log_mel, 1, self._cfg.timem, drawn[:, 2], drawn[:, 3])
        return self._noisy(log_mel, epoch, clip_index) if self._cfg.noise else log_mel

    def _noisy(self, log_mel: Tensor, epoch: Tensor, clip_index: Tensor) -> Tensor:
        """Uniform noise up to a tenth of a standard deviation, as loud as the clip drew; then a circular shift."""
        clips, frames, bins = log_mel.shape
        loudness = clip_uniform(self._seed, epoch, clip_index, Stream.LOUDNESS, 1)[..., None] / 10  # [B, 1, 1]
        noise = clip_noise(self._seed, epoch, clip_index, frames * bins).view(clips, frames, bins)
        drawn = clip_uniform(self._seed, epoch, clip_index, Stream.ROLL, 1)  # [B, 1]
        shift = (drawn * (2 * frames)).long() - frames  # -T ... T - 1
        source = (torch.arange(frames, device=log_mel.device) - shift) % frames  # [B, T]
        noisy = log_mel + noise * loudness * self._std
        return noisy.gather(1, source[..., None].expand(-1, -1, bins))


def _hide(log_mel: Tensor, axis: int, widest: int, width: Tensor, start: Tensor) -> Tensor:
    """Zeros in a band of U(0, widest) steps that begins at U(0, size - width), both truncated; draws [B] in [0, 1)."""
    if not widest:
        return log_mel
    size = log_mel.shape[axis]
    wide = width * widest
    first = (start * (size - wide)).long()
    step = torch.arange(size, device=log_mel.device)
    hidden = (step >= first[:, None]) & (step < (first + wide.long())[:, None])  # [B, size]
    return log_mel.masked_fill(hidden[:, None, :] if axis == 2 else hidden[:, :, None], 0.0)


def _centred(waveform: Tensor, n_samples: Tensor) -> Tensor:
    """Int16 sounds [B, N] as float in [-1, 1] without their means; what lies after their ends is 0."""
    sound = waveform.float() / INT16_SCALE
    inside = torch.arange(sound.shape[1], device=sound.device) < n_samples[:, None]
    mean = (sound * inside).sum(1, keepdim=True) / n_samples.clamp(min=1)[:, None]
    return torch.where(inside, sound - mean, 0.0)


def _checked(labels: list[int], classes: int) -> list[int]:
    if any(not 0 <= label < classes for label in labels):
        raise ValueError(f"a clip's labels {labels} do not all lie below the {classes} classes")
    return labels

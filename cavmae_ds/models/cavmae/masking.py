"""Grids of patches of both modalities, and which patches are hidden (spec/cav-mae.md 1.4 and 1.7)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from cavmae_ds.distributed.per_sample_rng import Stream
from cavmae_ds.kernels.grid import Grid
from cavmae_ds.kernels.random_mask import random_mask
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.common.masking import MaskPlan, Plans, kept_patches, structured_counts


def audio_grid(cfg: ModelConfig) -> Grid:
    """Grid of the log-mel: mel bins are rows, time is columns (spec/cav-mae.md 1.4)."""
    return Grid(cfg.mel_bins // cfg.patch_size, cfg.audio_frames // cfg.patch_size, cfg.patch_size, channels=1)


def image_grid(cfg: ModelConfig) -> Grid:
    """Grid of the RGB frame."""
    side = cfg.image_size // cfg.patch_size
    return Grid(side, side, cfg.patch_size, channels=3)


def draw_plans(model: ModelConfig, mask: MaskConfig, seed: int, epoch: int | Tensor, clip_index: Tensor) -> Plans:
    """The masks of the clips with the given indices: a pure function of seed, epoch and clip.

    epoch is one number or int64 [B], clip_index is int64 [B]; the plans lie on clip_index's device.
    """
    audio, image = audio_grid(model), image_grid(model)
    columns, rows = structured_counts(mask.audio_mode, mask.audio_ratio, audio)
    audio_kept = kept_patches(audio.patches, mask.audio_ratio)
    image_kept = kept_patches(image.patches, mask.image_ratio)
    draw = partial(random_mask, seed, epoch, clip_index)
    return Plans(
        audio=MaskPlan(*draw(audio, audio_kept, stream=Stream.AUDIO_MASK, columns=columns, rows=rows)),
        image=MaskPlan(*draw(image, image_kept, stream=Stream.IMAGE_MASK)),
    )

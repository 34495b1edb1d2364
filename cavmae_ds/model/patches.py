"""Pictures and log-mels as rows of square patches. B clips, L patches, P values per patch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.config import ModelConfig


class Grid(NamedTuple):
    """How one input is cut: rows x columns of square patches. Rows of a log-mel are bands of frequencies."""

    rows: int
    columns: int
    patch: int
    """Side of a patch, in pixels (or mel bins and frames)."""
    channels: int

    @property
    def patches(self) -> int:
        """Number of patches, L."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Values per patch, P."""
        return self.patch * self.patch * self.channels

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the picture that is cut."""
        return self.channels, self.rows * self.patch, self.columns * self.patch


def audio_grid(cfg: ModelConfig) -> Grid:
    """Grid of the log-mel: mel bins are rows, time is columns (spec/cav-mae.md 1.4)."""
    return Grid(cfg.mel_bins // cfg.patch_size, cfg.audio_frames // cfg.patch_size, cfg.patch_size, channels=1)


def image_grid(cfg: ModelConfig) -> Grid:
    """Grid of the RGB frame."""
    side = cfg.image_size // cfg.patch_size
    return Grid(side, side, cfg.patch_size, channels=3)


def patchify(pictures: Tensor, grid: Grid) -> Tensor:
    """Cut pictures [B, channels, height, width] into patches [B, L, P], any dtype.

    Patch k lies at row k // columns, column k % columns. Inside a patch, value (p * patch + q) * channels + c
    is row p, column q, channel c (spec/cav-mae.md 1.4). Raises ValueError for a picture of another size.
    """
    clips, *shape = pictures.shape
    if tuple(shape) != grid.picture_shape:
        raise ValueError(f"the pictures must be [B, C, H, W] with C, H, W = {grid.picture_shape}, got {shape}")
    rows, columns, patch, channels = grid
    cut = pictures.reshape(clips, channels, rows, patch, columns, patch)  # [B, C, R, p, S, q]
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(clips, grid.patches, grid.values)


def unpatchify(patches: Tensor, grid: Grid) -> Tensor:
    """Put patches [B, L, P] back together: the exact inverse of patchify, [B, channels, height, width]."""
    clips, *shape = patches.shape
    if tuple(shape) != (grid.patches, grid.values):
        raise ValueError(f"the patches must be [B, {grid.patches}, {grid.values}], got [B, {shape}]")
    rows, columns, patch, channels = grid
    cut = patches.reshape(clips, rows, columns, patch, patch, channels)  # [B, R, S, p, q, C]
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(clips, *grid.picture_shape)


def audio_to_patches(audio: Tensor, grid: Grid) -> Tensor:
    """Log-mel [B, frames, mel bins] to patches [B, L, P]."""
    return patchify(audio.transpose(1, 2).unsqueeze(1), grid)  # mel becomes the row axis, time the column axis


def patches_to_audio(patches: Tensor, grid: Grid) -> Tensor:
    """Patches [B, L, P] back to the log-mel [B, frames, mel bins]."""
    return unpatchify(patches, grid).squeeze(1).transpose(1, 2)


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, L, D] in the order of index [B, K] int64: [B, K, D]."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


class PatchProjection(torch.nn.Conv2d):
    """The official patch convolution, applied to patches that are already cut out.

    Kernel and stride are the patch, so the convolution is one linear map of each patch; only visible patches
    need it. A Conv2d by its parameters, for the official names and shapes.
    """

    def __init__(self, grid: Grid, width: int):
        super().__init__(grid.channels, width, kernel_size=grid.patch, stride=grid.patch)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, K, P] of any float dtype to tokens [B, K, D] in the weight's dtype."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P], values in the order of a patch
        return torch.nn.functional.linear(patches.to(weight.dtype), weight, self.bias)

"""Pictures and log-mels as rows of square patches. B clips, L patches, P values per patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.kernels.embed_epilogue import embed_epilogue
from cavmae_ds.kernels.grid import Grid
from cavmae_ds.kernels.patch_gather import patch_gather


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


class Picture(NamedTuple):
    """One modality of a batch as it is stored, how it is cut, and how its values are normalised."""

    pixels: Tensor
    """Images [B, 3, H, W], uint8 or float, or log-mels [B, frames, mel bins], float."""
    grid: Grid
    mean: tuple[float, ...]
    """Per channel; see data/transforms/normalise.py."""
    std: tuple[float, ...]

    def patches(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        """The normalised patches with ids keep [B, K] int64: [B, K, P]."""
        return patch_gather(self.pixels, keep, self.grid, self.mean, self.std, dtype)

    def every_patch(self) -> Tensor:
        """The ids of all patches of each clip, in order: [B, L] int64."""
        ids = torch.arange(self.grid.patches, device=self.pixels.device)
        return ids.expand(self.pixels.shape[0], -1).contiguous()


class PatchProjection(torch.nn.Conv2d):
    """The official patch convolution, applied to the patches that are visible.

    Kernel and stride are the patch, so the convolution is one linear map of each patch. A Conv2d by its parameters,
    for the official names and shapes.
    """

    def __init__(self, grid: Grid, width: int):
        super().__init__(grid.channels, width, kernel_size=grid.patch, stride=grid.patch)

    def initial_values(self, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Parameters and what they start as, whole: the weight as one linear map, the bias as torch has it."""
        values = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        weight = torch.nn.init.xavier_uniform_(torch.empty(self.out_channels, values), generator=draw)
        yield self.weight, weight.view(self.out_channels, self.in_channels, *self.kernel_size)
        assert self.bias is not None
        bound = values**-0.5
        yield self.bias, torch.empty(self.out_channels).uniform_(-bound, bound, generator=draw)

    def forward(  # type: ignore[override]  # a Conv2d by its parameters only
        self, picture: Picture, keep: Tensor, positions: Tensor, modality: Tensor
    ) -> Tensor:
        """Tokens [B, K, D] of the patches with ids keep [B, K], plus their rows of positions [L, D] and modality."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P], values in the order of a patch
        tokens = torch.nn.functional.linear(picture.patches(keep, weight.dtype), weight)
        assert self.bias is not None
        return embed_epilogue(tokens, self.bias, positions, modality, keep)

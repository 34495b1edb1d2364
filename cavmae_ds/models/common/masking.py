"""Which patches the encoder sees. B clips, L patches, K kept ones; randomness comes in as uniform noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.errors import ConfigError
from cavmae_ds.kernels.random_mask import rank_by_noise
from cavmae_ds.kernels.random_mask import structured as structured
from cavmae_ds.models.common.patches import Grid


class MaskPlan(NamedTuple):
    """What happens to the patches of one modality; all int64 patch ids."""

    keep: Tensor
    """[B, K] visible patches, in the (shuffled) order in which the encoder sees them."""
    hidden: Tensor
    """[B, L - K] hidden patches, in shuffled order."""
    restore: Tensor
    """[B, L] where each patch went: cat(keep, hidden)[restore] counts 0, 1, 2, ..."""

    @property
    def mask(self) -> Tensor:
        """[B, L] float32 in the order of the patches: 1 is hidden, 0 visible."""
        return torch.ones(self.restore.shape, device=self.restore.device).scatter(1, self.keep, 0.0)


class Plans(NamedTuple):
    """The plans of both modalities of a batch."""

    audio: MaskPlan
    image: MaskPlan


def kept_patches(patches: int, ratio: float) -> int:
    """Visible patches out of `patches` when the share `ratio` is hidden: int(L (1 - r)), spec/cav-mae.md 1.7.

    Raises ConfigError when nothing would be hidden (the reconstruction loss would be 0/0) or nothing visible.
    """
    kept = int(patches * (1 - ratio))
    if not 0 < kept < patches:
        raise ConfigError(
            f"the mask ratio must hide some of the {patches} patches and leave some visible, "
            f"got {ratio}, which keeps {kept}; choose a ratio between 0 and 1"
        )
    return kept


def plan_from_noise(noise: Tensor, kept: int) -> MaskPlan:
    """Keep the `kept` patches with the smallest noise [B, L], in that order; equal noise goes by patch id."""
    return MaskPlan(*rank_by_noise(noise, kept))


def structured_counts(mode: str, ratio: float, grid: Grid) -> tuple[int, int]:
    """Columns and rows to hide first in a mode: unstructured, time, freq or tf (spec/cav-mae.md 1.7)."""
    if mode == "unstructured":
        return 0, 0
    if mode == "time":
        return int(grid.columns * ratio), 0
    if mode == "freq":
        return 0, int(grid.rows * ratio)
    if mode == "tf":
        return int(grid.columns * ratio * 0.7), int(grid.rows * ratio * 0.7)
    raise ConfigError(f"mask.audio_mode must be one of unstructured, time, freq, tf, got {mode!r}")

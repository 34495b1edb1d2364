"""Sizes and random inputs of the kernels' cases: CAV-MAE base, ragged and tiny.

B clips; K kept and H hidden of L patches; D width; N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.kernels.grid import Grid


class Part(NamedTuple):
    """One modality: how its input is cut, and how many patches stay visible."""

    grid: Grid
    kept: int

    @property
    def hidden(self) -> int:
        """Hidden patches, H."""
        return self.grid.patches - self.kept


@dataclass(frozen=True)
class Shape:
    """Sizes that all kernels of one training step share."""

    name: str
    clips: int
    audio: Part
    image: Part
    width: int
    decoder_width: int
    candidates: int
    """Clips that each clip is compared with: those of all ranks."""
    real: bool = False
    """Sizes of CAV-MAE base, which wide loads fit: the ones to compile and to time."""


def base(clips: int, candidates: int | None = None) -> Shape:
    """CAV-MAE base (spec/cav-mae.md 1.7) on one of eight ranks."""
    audio, image = Part(Grid(8, 64, 16, 1), kept=128), Part(Grid(14, 14, 16, 3), kept=49)
    return Shape(f"base-{clips}", clips, audio, image, 768, 512, candidates or 8 * clips, real=True)


REAL = tuple(base(clips) for clips in (64, 256, 512))
RAGGED = Shape(
    "ragged", 3, Part(Grid(3, 7, 5, 1), 8), Part(Grid(5, 3, 6, 3), 4), width=76, decoder_width=44, candidates=37
)
TINY = Shape("tiny", 1, Part(Grid(1, 2, 2, 1), 1), Part(Grid(2, 1, 2, 3), 1), width=4, decoder_width=4, candidates=2)
SHAPES = *REAL, RAGGED, TINY
LARGE = tuple(base(clips, candidates=clips) for clips in (4096, 16384, 65536))  # for the contrastive loss alone


class Draw:
    """Random inputs on a device; on "meta" only their shapes."""

    def __init__(self, device: str | torch.device, seed: int):
        self.device = torch.device(device)
        self._generator = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Standard normal; drawn in float32, so that dtypes differ by rounding only."""
        if self._generator is None:
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.randn(shape, generator=self._generator, device=self.device).to(dtype)

    def pixels(self, *shape: int) -> Tensor:
        """uint8, all values."""
        if self._generator is None:
            return torch.empty(shape, dtype=torch.uint8, device="meta")
        return torch.randint(0, 256, shape, generator=self._generator, device=self.device, dtype=torch.uint8)

    def shuffle(self, clips: int, patches: int) -> Tensor:
        """A permutation of the patches per clip, int64 [B, L]."""
        return self.normal(clips, patches, dtype=torch.float32).argsort(1)

    def unit_rows(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Rows of length 1, as the contrastive loss gets them."""
        return torch.nn.functional.normalize(self.normal(rows, width, dtype=torch.float32), dim=1).to(dtype)

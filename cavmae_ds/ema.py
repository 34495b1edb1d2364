"""A running mean of the weights: smoother than any single step's, and often better to evaluate."""

from __future__ import annotations

import math
from typing import Any

import torch

from cavmae_ds.distributed import World
from cavmae_ds.partitions import find_partitions


class WeightAverage:
    """mean <- decay * mean + (1 - decay) * weights after every optimizer step, in fp32; it starts at the first weights.

    decay = exp(-global_batch / horizon_clips): a step's weights count 1/e after horizon_clips more clips, so the batch
    may change and the mean covers as much training as before. Each rank averages the fp32 values that its optimizer
    updates, so a step costs no communication.
    """

    def __init__(self, engine: Any, world: World, horizon_clips: int, global_batch: int):
        """engine: freshly built. Memory: 4 bytes for every parameter that this rank's optimizer updates."""
        self._flats = find_partitions(engine, world).flats
        self._weight = -math.expm1(-global_batch / horizon_clips)  # 1 - decay, without cancellation
        self.means = [flat.detach().clone() for flat in self._flats]
        """Laid out as the flat partitions are (find_partitions)."""

    @torch.no_grad()
    def update(self) -> None:
        """Note one optimizer step."""
        torch._foreach_lerp_(self.means, [flat.detach() for flat in self._flats], self._weight)

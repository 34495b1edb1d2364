"""A running mean of the weights: smoother than any single step's, and often better to evaluate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

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
        self._partitions = find_partitions(engine, world)
        self._is_first = world.is_first
        self._weight = -math.expm1(-global_batch / horizon_clips)  # 1 - decay, without cancellation
        self._means = [flat.detach().clone() for flat in self._partitions.flats]

    @torch.no_grad()
    def update(self) -> None:
        """Note one optimizer step."""
        torch._foreach_lerp_(self._means, [flat.detach() for flat in self._partitions.flats], self._weight)

    def whole(self) -> dict[str, Tensor]:
        """The mean of every trained parameter, fp32, on the first rank's CPU; the other ranks help and get nothing."""
        found = {}
        for number, name in enumerate(self._partitions.names):
            mean = self._partitions.whole(number, self._means)
            if self._is_first:
                found[name] = mean.cpu()
        return found

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Go on, bit by bit, from what whole() gave, saved as safetensors: each rank reads it and keeps its part."""
        with safe_open(path, framework="pt") as file:
            for mean, fragments in zip(self._means, self._partitions.fragments, strict=True):
                for fragment in fragments:
                    saved = file.get_tensor(self._partitions.names[fragment.parameter]).flatten()
                    fragment.of(mean).copy_(saved.narrow(0, fragment.offset, fragment.numel))

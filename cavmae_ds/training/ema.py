"""The exponential running mean of the weights: smoother than any single step's, and often better to evaluate."""

from __future__ import annotations

import math
from typing import Any

from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean


class WeightAverage(RunningMean):
    """An exponential mean over the last clips, whatever the batch.

    Each step keeps exp(-global_batch / horizon_clips) of it: a step's weights count 1/e after horizon_clips more clips,
    so the batch may change and the mean covers as much training as before.
    """

    state = "ema"

    def __init__(self, engine: Any, world: World, horizon_clips: int, global_batch: int):
        super().__init__(engine, world)
        self._weight = -math.expm1(-global_batch / horizon_clips)  # 1 - decay, without cancellation

    def weight(self, step: int, skipped: bool) -> float:
        """The same for every step that was taken."""
        return 0.0 if skipped else self._weight

"""Running means of the weights: smoother than any single step's, and often better to evaluate.

Each rank averages the fp32 values that its optimizer updates, so a step costs no communication. Which steps count, and
how much, is a pure function of the step: a mean can be saved as it is and taken up again.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from cavmae_ds.config.sections.common import RunConfig
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import find_partitions
from cavmae_ds.tasks.finetune.config import FinetuneConfig


class RunningMean:
    """mean <- mean + weight * (weights - mean), in fp32; it starts at the first weights."""

    state: str
    """What a checkpoint calls it."""

    def __init__(self, engine: Any, world: World):
        """engine: freshly built. Memory: 4 bytes for every parameter that this rank's optimizer updates."""
        self._flats = find_partitions(engine, world).flats
        self.means = [flat.detach().clone() for flat in self._flats]
        """Laid out as the flat partitions are (find_partitions)."""

    def weight(self, step: int, skipped: bool) -> float:
        """How much the weights after so many optimizer steps count against the mean so far."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, step: int, skipped: bool = False) -> None:
        """Note the weights after `step` optimizer steps, of which the last one was perhaps not taken."""
        weight = self.weight(step, skipped)
        if weight:
            torch._foreach_lerp_(self.means, [flat.detach() for flat in self._flats], weight)


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


def running_means(cfg: RunConfig, steps_per_epoch: int, engine: Any, world: World) -> list[RunningMean]:
    """Those that a run keeps."""
    means: list[RunningMean] = []
    if cfg.train.ema_clips:
        means.append(WeightAverage(engine, world, cfg.train.ema_clips, cfg.train.global_batch))
    if isinstance(cfg, FinetuneConfig) and cfg.average.on:
        from cavmae_ds.tasks.finetune.weight_average import EpochAverage

        means.append(EpochAverage(engine, world, cfg.average, steps_per_epoch))
    return means

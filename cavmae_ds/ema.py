"""Running means of the weights: smoother than any single step's, and often better to evaluate.

Each rank averages the fp32 values that its optimizer updates, so a step costs no communication. Which steps count, and
how much, is a pure function of the step: a mean can be saved as it is and taken up again.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from cavmae_ds.config import CommonConfig, FinetuneConfig
from cavmae_ds.config.sections.classify import AverageConfig
from cavmae_ds.distributed import World
from cavmae_ds.partitions import find_partitions


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


class EpochAverage(RunningMean):
    """The plain mean of the weights after each epoch of a range (spec/cav-mae.md 4.5); before, it means nothing."""

    state = "averaged"

    def __init__(self, engine: Any, world: World, cfg: AverageConfig, steps_per_epoch: int):
        super().__init__(engine, world)
        self._cfg, self._steps_per_epoch = cfg, steps_per_epoch

    def weight(self, step: int, skipped: bool) -> float:
        """1/k for the k-th epoch that counts, when it ends, however its last step did; 0 otherwise."""
        epoch, inside = divmod(step, self._steps_per_epoch)
        if inside or not self._cfg.from_epoch <= epoch <= self._cfg.to_epoch:
            return 0.0
        return 1 / (epoch - self._cfg.from_epoch + 1)


def running_means(cfg: CommonConfig, steps_per_epoch: int, engine: Any, world: World) -> list[RunningMean]:
    """Those that a run keeps."""
    means: list[RunningMean] = []
    if cfg.train.ema_clips:
        means.append(WeightAverage(engine, world, cfg.train.ema_clips, cfg.train.global_batch))
    if isinstance(cfg, FinetuneConfig) and cfg.average.on:
        means.append(EpochAverage(engine, world, cfg.average, steps_per_epoch))
    return means

"""The plain mean of the weights after several epochs."""

from __future__ import annotations

from typing import Any

from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.tasks.finetune.config import AverageConfig


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

"""A running mean of the weights, laid out as ZeRO lays out what each rank updates.

Each rank averages the fp32 values that its optimizer updates, so a step costs no communication. Which steps count, and
how much, is a pure function of the step: a mean can be saved as it is and taken up again.
"""

from __future__ import annotations

from typing import Any

import torch

from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import find_partitions


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

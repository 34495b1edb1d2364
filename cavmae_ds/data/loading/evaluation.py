"""The clips that a run validates on, cut into groups and dealt out to ranks, each clip once.

The clips are cut into groups, in order: a group is one forward pass on one rank. Which rank takes a group changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.loading.handover import micro_batches
from cavmae_ds.data.loading.sources import held_out
from cavmae_ds.data.loading.stream import EvaluationClips, clip_loader
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready, ahead
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import DataError


class ValidationClips:
    """Clips that are never trained on, seen in their middle. Built, and gone through, by all ranks together."""

    def __init__(self, data: DataConfig, world: World, front_end: FrontEnd):
        """Held-out clips of the training sources, then those of data.validation. Raises DataError for none at all."""
        self._data, self._world, self._front_end = data, world, front_end
        training = [source.remote for source in data.all_sources] if data.validation_share else []
        self.addresses = [*training, *filter(None, [data.validation])]
        self.clips = EvaluationClips(self.addresses, front_end.inputs, data.cache, data)
        """All that lie there; those at `places`, which ascend, are validated on."""
        of_training = int(self.clips.clips_by_address[: len(training)].sum())
        kept = held_out(0, of_training, data.validation_share)
        self.places: NDArray[np.int64] = np.concatenate([np.flatnonzero(kept), np.arange(len(kept), len(self.clips))])
        if not len(self.places):
            raise DataError(
                f"data.validation_share = {data.validation_share:g} holds out none of {len(kept)} clips; raise it or "
                "set data.validation"
            )

    def batches(self, groups: list[list[int]]) -> Iterator[tuple[Ready, bool]]:
        """This rank's groups, and True; as many on every rank, for ZeRO-3 needs all of them in each forward pass.

        A clip that only keeps the other ranks company comes with False.
        """
        own = groups[self._world.rank :: self._world.size]
        missing = -(-len(groups) // self._world.size) - len(own)
        loader = clip_loader(
            self.clips, self._data, self._world.device, batch_sampler=[*own, *[groups[0][:1]] * missing]
        )
        counted = [True] * len(own) + [False] * missing
        return zip(ahead(micro_batches(loader), self._front_end), counted, strict=True)


def groups_of(places: NDArray[np.int64], size: int) -> list[list[int]]:
    """Groups of so many places, the last one perhaps smaller."""
    return [places[start : start + size].tolist() for start in range(0, len(places), size)]


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Evaluation mode inside, what it was before afterwards."""
    training = engine.training
    engine.eval()
    try:
        yield
    finally:
        engine.train(training)

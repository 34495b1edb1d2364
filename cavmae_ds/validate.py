"""Validation while training: the losses over clips that are never trained on, the same on any number of ranks.

The clips are cut into groups of monitor.validate_batch, in order: a group is one forward pass on one rank, and the
candidates of its contrastive loss. Which rank takes a group changes nothing. Masks are those of (seed, epoch 0, clip).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cavmae_ds.config import RunConfig
from cavmae_ds.data.front_end import FrontEnd, ahead
from cavmae_ds.data.sources import held_out
from cavmae_ds.data.stream import EvaluationClips, clip_loader, micro_batches
from cavmae_ds.distributed import World, sum_over_ranks
from cavmae_ds.errors import DataError
from cavmae_ds.losses import PretrainLosses, contrast_within, pretrain_losses
from cavmae_ds.model.masking import draw_plans


class Validation:
    """The clips to validate on. Built, and called, by all ranks together."""

    def __init__(self, cfg: RunConfig, world: World, engine: Any, front_end: FrontEnd):
        """Held-out clips of the training sources, then those of data.validation. Raises DataError for none at all."""
        self._cfg, self._world, self._engine, self._front_end = cfg, world, engine, front_end
        data = cfg.data
        training = [source.remote for source in data.all_sources] if data.validation_share else []
        self._clips = EvaluationClips([*training, *filter(None, [data.validation])], data.cache, data)
        of_training = int(self._clips.clips_by_address[: len(training)].sum())
        kept = held_out(0, of_training, data.validation_share)
        places = np.concatenate([np.flatnonzero(kept), np.arange(len(kept), len(self._clips))])
        if not len(places):
            raise DataError(
                f"data.validation_share = {data.validation_share:g} holds out none of {len(kept)} clips; raise it or "
                "set data.validation"
            )
        size = cfg.monitor.validate_batch
        self._groups = [places[start : start + size].tolist() for start in range(0, len(places), size)]

    @torch.no_grad()
    def __call__(self) -> PretrainLosses:
        """Means over all validation clips, float64, on every rank. Raises DataError for a clip that is damaged."""
        cfg = self._cfg
        sums = torch.zeros(len(PretrainLosses._fields) + 1, dtype=torch.float64, device=self._world.device)
        with _evaluating(self._engine):
            for (audio, images, keys, batch), counted in zip(self._batches(), self._counted(), strict=True):
                plans = draw_plans(cfg.model, cfg.mask, cfg.train.seed, *keys)
                output = self._engine(
                    audio, images, plans, mae=cfg.loss.mae_weight > 0, contrastive=cfg.loss.contrastive_weight > 0
                )
                contrast = contrast_within(output, cfg.contrastive) if cfg.loss.contrastive_weight else None
                losses = pretrain_losses(output, contrast, cfg.loss)
                if counted:
                    terms = [*(term.double() for term in losses), sums.new_ones(())]
                    sums += len(batch.clip_index) * torch.stack(terms)
        sums = sum_over_ranks(sums)
        return PretrainLosses(*(sums[:-1] / sums[-1]))

    def _batches(self) -> Iterator[Any]:
        loader = clip_loader(self._clips, self._cfg.data, self._world.device, batch_sampler=self._own_groups())
        return ahead(micro_batches(loader), self._front_end)

    def _own_groups(self) -> list[list[int]]:
        """This rank's groups; as many on every rank, for ZeRO-3 needs all of them in each forward pass."""
        own = self._groups[self._world.rank :: self._world.size]
        return own if len(own) == self._rounds else [*own, self._groups[0][:1]]

    def _counted(self) -> list[bool]:
        """True for each of this rank's groups, False for the clip that only keeps the other ranks company."""
        own = len(self._groups[self._world.rank :: self._world.size])
        return [True] * own + [False] * (self._rounds - own)

    @property
    def _rounds(self) -> int:
        return -(-len(self._groups) // self._world.size)


@contextmanager
def _evaluating(engine: Any) -> Iterator[None]:
    """Evaluation mode inside, what it was before afterwards."""
    training = engine.training
    engine.eval()
    try:
        yield
    finally:
        engine.train(training)

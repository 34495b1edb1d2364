"""Validation while training: losses and retrieval over clips never trained on, the same on any number of ranks.

The clips are cut into groups of monitor.validate_batch, in order: a group is one forward pass on one rank, and the
candidates of its contrastive loss. Which rank takes a group changes nothing. Masks are those of (seed, epoch 0, clip).
Retrieval is the probe that `cavmae evaluate` makes of a finished run: nothing is hidden, middle frames, one pool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cavmae_ds.config.sections.training import MonitorConfig
from cavmae_ds.data.format.spread import spread
from cavmae_ds.data.loading.evaluation import ValidationClips, evaluating, groups_of
from cavmae_ds.distributed.collectives import from_all_ranks, sum_over_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import DataError
from cavmae_ds.evaluation.retrieval import Retrieval, retrieval_scores
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig
from cavmae_ds.tasks.pretrain.forward import MaskedForward
from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses


class Validation:
    """The clips to validate on. Built, and called, by all ranks together."""

    def __init__(
        self, clips: ValidationClips, forward: MaskedForward, contrastive: ContrastiveConfig, monitor: MonitorConfig,
        total_steps: int, world: World, engine: Any,
    ):  # fmt: skip
        """Raises DataError for too few clips to search among."""
        self._clips, self._forward, self._contrastive, self._monitor = clips, forward, contrastive, monitor
        self._world, self._engine, self._total_steps = world, engine, total_steps
        places = clips.places
        self._groups = groups_of(places, monitor.validate_batch)
        if monitor.probe_every and len(places) < 2:
            raise DataError("monitor.probe_every needs at least 2 clips to search among, got 1; hold out more")
        pool = min(len(places), monitor.probe_clips)  # from all over the clips: neighbours may be alike
        self._pool = groups_of(places[spread(pool, len(places))], monitor.validate_batch)

    def after(self, step: int) -> dict[str, float]:
        """Validate and probe if it is due after this step: curves, the probe's on the first rank only."""
        points = {}
        if self._due(step, self._monitor.validate_every):
            points = {f"validation/{name}": value.item() for name, value in self().items()}
        if self._due(step, self._monitor.probe_every):
            scores = self.retrieval()
            points |= probe_curves(scores) if scores else {}
        return points

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """Term of the losses -> its mean over all validation clips, float64, on every rank.

        Raises DataError for a clip that is damaged.
        """
        names, loss = self._forward.terms(self._contrastive.direction), self._forward.loss
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self._world.device)
        with evaluating(self._engine):
            for ready, counted in self._clips.batches(self._groups):
                output = self._forward(self._engine, ready)
                contrast = contrast_within(output, self._contrastive) if loss.contrastive_weight else None
                losses = pretrain_losses(output, contrast, loss).terms()
                if counted:
                    terms = [*(losses[name].double() for name in names), sums.new_ones(())]
                    sums += len(ready.batch.clip_index) * torch.stack(terms)
        sums = sum_over_ranks(sums)
        return dict(zip(names, sums[:-1] / sums[-1], strict=True))

    @torch.no_grad()
    def retrieval(self) -> Retrieval | None:
        """Scores of monitor.probe_clips of the clips, on the first rank; None on the others.

        Raises DataError for a clip that is damaged.
        """
        pooled: list[tuple[Tensor, Tensor]] = []
        labels: list[list[int]] = []
        with evaluating(self._engine):
            for (audio, images, _, batch), counted in self._clips.batches(self._pool):
                tokens = self._engine(audio, images, None)  # two times [B, L, D]
                if counted:
                    pooled.append((tokens.audio.float().mean(1).cpu(), tokens.image.float().mean(1).cpu()))
                    labels += batch.labels
        found = from_all_ranks((pooled, labels))
        if not self._world.is_first:
            return None
        sounds, frames = zip(*(sides for of_rank, _ in found for sides in of_rank), strict=True)
        return retrieval_scores(torch.cat(sounds), torch.cat(frames), [clip for _, own in found for clip in own])

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._total_steps)


def probe_curves(scores: Retrieval) -> dict[str, float]:
    """Retrieval scores to curves; class scores only where clips have labels."""
    points = {"probe/chance_recall_at_1": scores.chance_recall_at_1}
    if scores.chance_class_precision_at_1 is not None:
        points["probe/chance_class_precision_at_1"] = scores.chance_class_precision_at_1
    for name, direction in (("audio_to_image", scores.audio_to_image), ("image_to_audio", scores.image_to_audio)):
        points |= {f"probe/{name}_{key}": value for key, value in direction._asdict().items() if value is not None}
    return points

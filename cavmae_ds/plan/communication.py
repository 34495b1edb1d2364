"""Bytes that one GPU receives from others in one optimizer step.

The ZeRO paper (section 7) counts two model sizes for stages 1 and 2, three for stage 3. DeepSpeed 0.19.8 reduces the
gradients of stages 1 and 2 by an all-reduce, twice a reduce-scatter (use_multi_rank_bucket_allreduce, its default), and
those of stages 2 and 3 after every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cavmae_ds.config.ds_config import zero_stage
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.plan.states import Parameters, bytes_per_value, zero_section
from cavmae_ds.tasks.task import AcrossClips

REUSE_DISTANCE = 1_000_000_000
"""DeepSpeed's default zero_optimization.stage3_max_reuse_distance: parameters used again so soon stay gathered."""


@dataclass(frozen=True)
class Traffic:
    """Bytes received by one GPU in an optimizer step."""

    gradients: int
    weights: int
    across_clips: int
    """Of a loss that compares clips."""

    @property
    def zero(self) -> int:
        return self.gradients + self.weights


def traffic(
    cfg: RunConfig, fragment: dict[str, Any], parameters: Parameters, across: AcrossClips, ranks: int
) -> Traffic:
    """What a step of the run makes one GPU receive; all zero on one GPU."""
    if ranks == 1:
        return Traffic(0, 0, 0)
    stage, value = zero_stage(fragment), bytes_per_value(cfg.train.precision)
    micro_batches = cfg.train.global_batch // (ranks * cfg.train.micro_batch)
    others = (ranks - 1) / ranks
    reductions = micro_batches if stage >= 2 else 1
    gradients = (1 if stage == 3 else 2) * reductions * value * parameters.trainable * others
    if stage == 0:
        weights = 0.0
    elif stage == 3:
        # Gathered for every forward, and anew for its backward unless the model is small enough to stay in between.
        reuse = zero_section(fragment).get("stage3_max_reuse_distance", REUSE_DISTANCE)
        gathers = 1 if 2 * parameters.total <= reuse else 2
        weights = (gathers + across.first_pass) * micro_batches * value * parameters.total * others
    else:
        weights = value * parameters.trainable * others
    return Traffic(int(gradients), int(weights), across.received)

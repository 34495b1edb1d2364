"""The numbers of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass

from cavmae_ds.tasks.run_plan import RunPlan


@dataclass(frozen=True)
class PretrainPlan(RunPlan):
    """What a pretraining run amounts to. `cavmae plan` predicts the rest of its memory."""

    states_gib_per_rank: float

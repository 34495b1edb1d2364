"""The numbers that follow from a run file, the ranks it gets and the clips it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunPlan:
    """What any run amounts to, exactly."""

    ranks: int
    clips: int
    clips_by_source: tuple[int, ...]
    epoch_clips: int
    held_out_clips: int
    global_batch: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    total_clips: int
    zero_stage: int
    peak_learning_rate: float
    warmup_steps: int
    parameters: int
    trainable_parameters: int
    gflop_per_clip: float
    fingerprints: tuple[str, ...] = field(default=(), kw_only=True)

    def lines(self) -> str:
        """As YAML comment lines, for --dry-run and the log."""
        return "\n".join(f"# {key}: {value}" for key, value in asdict(self).items())

    def head_classes(self) -> int:
        """Classes of the model's head; 0 for a model without one."""
        return 0

    def identity(self) -> Mapping[str, Any]:
        """Keys of the run file whose resolved value a resume compares instead of the one that was given."""
        return {}

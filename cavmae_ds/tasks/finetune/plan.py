"""The numbers of a finetuning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cavmae_ds.tasks.run_plan import RunPlan


@dataclass(frozen=True)
class FinetunePlan(RunPlan):
    """What a finetuning run amounts to."""

    classes: int
    class_names: tuple[str, ...]

    def head_classes(self) -> int:
        """Of section classifier, else those that the training shards name."""
        return self.classes

    def identity(self) -> Mapping[str, Any]:
        """The number of classes, which the run file may leave to the data."""
        return {"classifier.classes": self.classes}

"""What the `model` section of every family has."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from cavmae_ds.config.sections.base import OnResume, Section


class ModelSection(Section):
    """Base of each family's section (models/<family>/config.py), which adds its sizes and their defaults."""

    on_resume: ClassVar[OnResume] = OnResume.FIXED

    family: Annotated[str, OnResume.FIXED] = "cavmae"
    """Which family of models, of those that models/__init__.py registers; decides the other keys of this section."""

    def check_task(self, task: str) -> None:
        """Raises ValueError where a key of this section is of no use in a run of this task."""

    @property
    def clips_at_once(self) -> int:
        """Clips that a part of the model takes at a time, forward and backward; 0: all of a micro-batch."""
        return 0

    def memory_savers(self, task: str, clips: int) -> list[tuple[str, dict[str, Any]]]:
        """Names and full keys of ways to hold less in a task, from the least change to the most, with the same keys.

        clips: that a part of the model may take at a time, where it can take some; 0 for all.
        """
        return [("plain", {})]

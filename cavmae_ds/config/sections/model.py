"""What the `model` section of every family has."""

from __future__ import annotations

from typing import Annotated, ClassVar

from cavmae_ds.config.sections.base import OnResume, Section


class ModelSection(Section):
    """Base of each family's section (models/<family>/config.py), which adds its sizes and their defaults."""

    on_resume: ClassVar[OnResume] = OnResume.FIXED

    family: Annotated[str, OnResume.FIXED] = "cavmae"
    """Which family of models, of those that models/__init__.py registers; decides the other keys of this section."""

    def check_task(self, task: str) -> None:
        """Raises ValueError where a key of this section is of no use in a run of this task."""

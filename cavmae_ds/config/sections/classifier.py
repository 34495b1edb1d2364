"""The head of a classifier, and what of the encoder is trained with it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cavmae_ds.config.sections.base import OnResume, Section


class ClassifierSection(Section):
    """Base of each family's `classifier` section, which adds the inputs that its classifiers take (mode)."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    mode: str
    """Which modalities the classifier is given; the family has a list of them."""
    classes: Annotated[int, Field(ge=0), OnResume.FIXED] = 0
    """Classes of the head; 0: as many as the training shards name."""
    freeze_base: Annotated[bool, OnResume.FIXED] = False
    """Train the head alone: a linear probe of the encoder."""
    head_lr_ratio: Annotated[float, Field(gt=0)] = 50.0
    """The head's learning rate over the encoder's."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block's learning rate over that of the block after it; 1 trains all alike, as the official program does."""

    @property
    def kind(self) -> str:
        """Which of the family's models it trains: Weights.kind of its weights."""
        return "finetune"

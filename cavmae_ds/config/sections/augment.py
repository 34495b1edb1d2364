"""What training does to clips."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cavmae_ds.config.sections.base import OnResume, Section


class PretrainAugmentConfig(Section):
    """What pretraining does to clips; validation changes nothing."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    noise: bool = False
    """As in finetuning. Official recipes have it (spec/cav-mae.md 4.1); without it losses are of sounds as they are."""


class AugmentConfig(Section):
    """Defaults are the official finetuning recipes' (spec/cav-mae.md 4.2); evaluation augments nothing."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    mixup: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of clips mixed with another one: sound, frame and labels."""
    freqm: Annotated[int, Field(ge=0)] = 48
    """Widest band of mel bins hidden; 0 hides none."""
    timem: Annotated[int, Field(ge=0)] = 192
    """Longest stretch hidden, frames of 10 ms; 0 hides none."""
    noise: bool = True
    """Add noise of up to a tenth of a standard deviation, and shift the sound in time, round and round."""

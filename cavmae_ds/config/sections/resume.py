"""What a resume may change though the checkpoint was made with another value."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cavmae_ds.config.sections.base import OnResume, Section


class ResumeConfig(Section):
    """Consent to changes that a resume refuses otherwise (docs/operations.md has the table of all keys)."""

    on_resume: ClassVar[OnResume] = OnResume.FREE

    allow: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Keys that may differ from the checkpoint's: [mask.audio_ratio] for one change, [mask.audio_ratio=0.9] for changes
    to this value."""

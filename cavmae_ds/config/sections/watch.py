"""How ranks watch each other."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from cavmae_ds.config.sections.base import OnResume, Section


class WatchConfig(Section):
    """When a rank is given up, and how long a stop may take."""

    on_resume: ClassVar[OnResume] = OnResume.FREE

    silence_seconds: Annotated[float, Field(ge=5)] = 60.0
    """A rank without a sign of life for so long (they come every second) is given up and all others end: it died, was
    frozen, or its host or link is gone. A link that comes back earlier disturbs nobody."""
    stuck_seconds: Annotated[float, Field(gt=0)] = 900.0
    """A rank that lives but gets no further for so long is given up in the same way; stacks are written to RUN/stacks.
    Longer than a step, a save or a validation takes, and than data.timeout_seconds."""
    grace_seconds: Annotated[float, Field(gt=0)] = 25.0
    """After SIGTERM a save may take so long, then it is given up and the checkpoint before it counts: whoever sends
    SIGTERM kills soon after, the deepspeed launcher after 30 s. Other requests to stop know no such limit."""

    @model_validator(mode="after")
    def _patience_fits(self) -> WatchConfig:
        if self.stuck_seconds <= self.silence_seconds:
            raise ValueError(
                f"stuck_seconds must be larger than silence_seconds = {self.silence_seconds:g}, "
                f"got {self.stuck_seconds:g}; raise it or lower silence_seconds"
            )
        return self

    @property
    def collective_timeout_s(self) -> float:
        """When a collective gives up by itself, seconds: the watch, which can name who is missing, comes first."""
        return self.stuck_seconds + 2 * self.silence_seconds

"""What is done about steps whose numbers are wrong."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from cavmae_ds.config.sections.base import OnResume, Positive, Section, Weight


class GuardConfig(Section):
    """Steps that are not taken, and steps that are looked at.

    A step whose loss or gradient is not finite, on any rank, is skipped by all: weights, moments and running means stay
    as they are, the clips count as seen. The log names the clips, RUN/nonfinite holds what is known of each.
    """

    on_resume: ClassVar[OnResume] = OnResume.FREE

    max_nonfinite_in_a_row: Positive = 10
    """So many skipped steps in a row end the run: a clip in ten thousand may be broken, ten batches in a row mean that
    the weights are, and that going on learns nothing."""
    spike_factor: Weight = 10.0
    """A gradient whose norm is so many times the median of the last ones is told, and RUN/spikes names its clips; the
    step is taken (optim.clip_grad_norm bounds it). 10: norms of neighbouring steps differ by some ten percent, over a
    whole run by a few times. 0: nothing is told."""
    spike_window: Annotated[int, Field(ge=8)] = 200
    """Norms in the median, which spikes move only when half of them are; judged from a quarter of them on. Long enough
    not to follow a rise within it, short beside the thousands of steps over which norms fall."""

    rewind: bool = False
    """When the loss stays high, go back to the checkpoint before it rose and leave out the updates of the steps where
    it did; their clips count as seen. The run ends with exit code 69 for that: `cavmae launch` starts it again."""
    rewind_factor: Annotated[float, Field(gt=1)] = 1.5
    """A loss so many times the median of the last spike_window ones is high: losses creep, and one that doubles has
    lost what thousands of steps had learnt."""
    rewind_after: Positive = 20
    """So many high losses in a row are no accident of a batch."""
    max_rewinds: Positive = 3
    """The run ends when its loss rises once more after so many: other batches will not help it."""

    @field_validator("spike_factor")
    @classmethod
    def _above_the_usual(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError(f"must be larger than 1, or 0 to tell nothing, got {factor:g}; all steps would be spikes")
        return factor

"""What a run starts from."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from cavmae_ds.config.sections.base import Folder, OnResume, Section

AudioHead = Literal["first_rows", "colour_mean"]
"""How MAE's decoder head for 16 x 16 x 3 pixels becomes one for 16 x 16 log-mel values: its first 256 rows, as in the
official adaptation (they paint the first 85 pixels), or the mean of each pixel's three colours."""
Positions = Literal["trim", "interpolate"]
"""How a position table follows another length of sound: its first columns, or stretched linearly in time."""


class InitConfig(Section):
    """Weights of a fresh run: drawn from train.seed unless something is given here. A resume loads its checkpoint."""

    on_resume: ClassVar[OnResume] = OnResume.START

    from_mae: Folder | None = None
    """ImageNet MAE with its decoder (.pth), adapted to both modalities (spec/cav-mae.md 2)."""
    from_checkpoint: Folder | None = None
    """Run folder (its newest checkpoint), official .pth, or .safetensors file. A finetuning run takes a pretrained
    model without its decoder, or a finetuned one with as many classes."""
    ema: bool = False
    """Of a run folder take the running mean of the weights."""
    audio_head: AudioHead = "first_rows"
    """Of from_mae: first_rows is the official choice, colour_mean the sensible one."""
    positions: Positions = "trim"
    """For log-mels of another length than the checkpoint's; interpolate for longer ones."""

    @model_validator(mode="after")
    def _one_origin(self) -> InitConfig:
        if self.from_mae and self.from_checkpoint:
            raise ValueError(
                f"from_mae ({self.from_mae}) and from_checkpoint ({self.from_checkpoint}) are both given; keep one"
            )
        if self.ema and not self.from_checkpoint:
            raise ValueError("ema is a choice of from_checkpoint, which is not given; leave it out")
        return self

    @property
    def given(self) -> bool:
        """True if weights are to be loaded."""
        return bool(self.from_mae or self.from_checkpoint)

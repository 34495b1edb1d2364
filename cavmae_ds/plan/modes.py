"""The switches of a run that trade memory, time and negatives for each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.tasks.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Modes:
    """What a plan varies; names as in the run file."""

    decoder_chunk: int
    """Clips whose decoder runs at once; 0 is the whole micro-batch."""
    checkpoint_towers: bool
    two_pass: bool


def modes_of(cfg: PretrainConfig) -> Modes:
    """The switches as the run file sets them."""
    model = cast(ModelConfig, cfg.model)
    return Modes(
        decoder_chunk=model.decoder_chunk,
        checkpoint_towers=model.checkpoint_towers,
        two_pass=cfg.contrastive.two_pass,
    )

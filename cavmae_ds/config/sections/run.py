"""A pretraining run, and what its sections must agree on."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from cavmae_ds.config.sections.augment import PretrainAugmentConfig
from cavmae_ds.config.sections.base import multiple
from cavmae_ds.config.sections.common import CommonConfig
from cavmae_ds.config.sections.losses import ContrastiveConfig, LossConfig
from cavmae_ds.config.sections.model import MaskConfig


class RunConfig(CommonConfig):
    """One run: a YAML file holds the differences from these defaults."""

    script: ClassVar[str] = "launch/pretrain.py"

    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    augment: PretrainAugmentConfig = PretrainAugmentConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.contrastive.chunks is not None:
            multiple("train.global_batch", self.train.global_batch, "contrastive.negatives", self.contrastive.chunks)
        if self.contrastive.two_pass and not self.loss.contrastive_weight:
            raise ValueError(
                "contrastive.two_pass needs a contrastive loss, got loss.contrastive_weight 0; "
                "raise it or set two_pass: false"
            )
        for key in ("validate_every", "probe_every"):
            every = getattr(self.monitor, key)
            if every and not (self.data.validation or self.data.validation_share):
                raise ValueError(
                    f"monitor.{key} is {every}, but there is nothing to validate on; "
                    "set data.validation or data.validation_share"
                )
        return self

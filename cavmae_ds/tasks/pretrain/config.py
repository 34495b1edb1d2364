"""A pretraining run: what is minimised, and what its sections must agree on."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.augment import PretrainAugmentConfig
from cavmae_ds.config.sections.base import OnResume, Section, Weight, multiple
from cavmae_ds.config.sections.common import RunConfig
from cavmae_ds.models.cavmae.config import MaskConfig


class LossConfig(Section):
    """total = mae_weight * (mae_audio + mae_image) + contrastive_weight * contrastive (spec/cav-mae.md 1.8)."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    mae_weight: Weight = 1.0
    """Weight of the reconstruction; 0 skips the decoder."""
    contrastive_weight: Weight = 0.01
    """Weight of the contrastive loss; 0 skips its two passes."""
    normalise_pixels: bool = True
    """Reconstruct patches normalised by their own mean and variance (norm_pix_loss)."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if self.mae_weight == 0 and self.contrastive_weight == 0:
            raise ValueError("mae_weight and contrastive_weight are both 0: nothing to learn; raise one of them")
        return self


class ContrastiveConfig(Section):
    """Who is compared with whom."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    negatives: Annotated[str, OnResume.CANDIDATES] = "global"
    """Clips of every rank (global), of this rank alone (rank), or chunk=n: of the same one of n equal parts of the
    global batch, as on n GPUs of the official program."""
    direction: Literal["v2a", "both"] = "v2a"
    """Each image against all sounds (official), or the mean of both directions."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosine; fixed, not learned."""
    two_pass: Annotated[bool, OnResume.CANDIDATES] = False
    """Compare all clips of a step, not of a micro-batch: features first, then forward again (+13 % FLOPs)."""
    exchange: Annotated[Literal["gather", "ring"], OnResume.FREE] = "gather"
    """How ranks see each other's sounds: all at once, or one rank's at a time in the memory of one."""
    gather_dtype: Literal["fp32", "bf16"] = "fp32"
    """What sounds are compared in, and sent in: bf16 halves the bytes and speeds up the products; sums are fp32."""

    @model_validator(mode="after")
    def _known_negatives(self) -> ContrastiveConfig:
        if self.negatives not in ("global", "rank") and self.chunks is None:
            raise ValueError(
                "negatives must be global, rank or chunk=n (n equal parts of the global batch, for example chunk=4), "
                f"got {self.negatives!r}"
            )
        if self.exchange == "ring" and self.negatives != "global":
            raise ValueError(
                f"exchange ring is for negatives global, got negatives {self.negatives!r}; choose exchange gather"
            )
        return self

    @property
    def chunks(self) -> int | None:
        """The n of chunk=n, else None."""
        found = re.fullmatch(r"chunk=([1-9]\d*)", self.negatives)
        return int(found[1]) if found else None


class PretrainConfig(RunConfig):
    """One run: a YAML file holds the differences from these defaults."""

    script: ClassVar[str] = "launch/pretrain.py"

    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    augment: PretrainAugmentConfig = PretrainAugmentConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> PretrainConfig:
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

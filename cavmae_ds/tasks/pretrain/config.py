"""A pretraining run: what is minimised, and what its sections must agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.augment import PretrainAugmentConfig
from cavmae_ds.config.sections.base import OnResume, Section, Weight, divisors, multiple
from cavmae_ds.config.sections.run import NextSteps, RunConfig
from cavmae_ds.errors import ConfigError


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
    title: ClassVar[str] = "pretraining"

    task: Annotated[Literal["pretrain"], OnResume.FIXED] = "pretrain"
    mask: Section = Section()
    """Which part of the inputs is hidden; the family has the keys."""
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

    @classmethod
    def next_steps(cls, settings: Mapping[str, Any], folder: str, data: str, averaged: bool) -> NextSteps:
        """Retrieval, reconstructions, a classifier."""
        yield (
            "how well it retrieves, and a page of what it finds",
            f"cavmae evaluate {folder} --data {data} --gallery {folder}/gallery.html",
        )
        if settings.get("loss.mae_weight"):
            yield "pictures of reconstructions", f"cavmae inpaint {folder} --data {data} --out {folder}/inpainted.png"
        yield (
            "a classifier from it, by a run file as in docs/finetune.md",
            f"deepspeed launch/finetune.py FINETUNE.yaml init.from_checkpoint={folder}",
        )

    def not_compared(self) -> set[str]:
        """Besides: augment.noise may be given up, and without a contrastive loss its section decides nothing."""
        keys = super().not_compared()
        if not self.augment.noise:
            keys.add("augment.noise")
        if not self.loss.contrastive_weight:
            keys |= {f"contrastive.{name}" for name in ContrastiveConfig.model_fields}
        return keys

    def candidates(self, ranks: int) -> int | None:
        """Clips that each clip is compared with in the contrastive loss."""
        if not self.loss.contrastive_weight:
            return None
        return self._candidates(ranks, self.train.micro_batch, self.contrastive.two_pass)

    def same_candidates(self, ranks: int, candidates: int) -> list[str]:
        """train.micro_batch and contrastive.two_pass, where they can give this number."""
        batch, two_pass = self.train.global_batch, self.contrastive.two_pass
        fitting = [] if batch % ranks else divisors(batch // ranks)
        micros = [micro for micro in fitting if self._candidates(ranks, micro, two_pass) == candidates]
        settings = [f"train.micro_batch: {micro}" for micro in micros[:1]]
        if not two_pass and self._candidates(ranks, self.train.micro_batch, True) == candidates:
            settings.append("contrastive.two_pass: true")
        return settings

    def check_fewer_ranks(self) -> None:
        """Raises ConfigError if clips are compared among the ranks' micro-batches."""
        compared = self.loss.contrastive_weight and self.contrastive.negatives == "global"
        if compared and not self.contrastive.two_pass:
            raise ConfigError(
                "with fewer ranks each clip would be compared with fewer others, for contrastive.negatives is global; "
                "set contrastive.two_pass: true, which compares all clips of a step"
            )

    def _candidates(self, ranks: int, micro_batch: int, two_pass: bool) -> int:
        if self.contrastive.chunks:
            return self.train.global_batch // self.contrastive.chunks
        everywhere = self.train.global_batch if two_pass else micro_batch * ranks
        return everywhere if self.contrastive.negatives == "global" else everywhere // ranks

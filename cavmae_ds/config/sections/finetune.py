"""A finetuning run, and what its sections must agree on."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.config.sections.classify import AverageConfig, ClassificationLossConfig, ClassifierConfig, EvaluateConfig
from cavmae_ds.config.sections.common import CommonConfig


class FinetuneConfig(CommonConfig):
    """One run that trains a classifier: a YAML file holds the differences from these defaults."""

    script: ClassVar[str] = "launch/finetune.py"

    classifier: ClassifierConfig
    augment: AugmentConfig = AugmentConfig()
    loss: ClassificationLossConfig = ClassificationLossConfig()
    average: AverageConfig = AverageConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> FinetuneConfig:
        epochs = self.train.epochs
        if epochs is None:
            raise ValueError("train.epochs must be given: finetuning is judged, and its weights averaged, by epochs")
        if self.average.to_epoch > epochs:
            raise ValueError(
                f"average.to_epoch must be at most train.epochs = {epochs}, got {self.average.to_epoch}; lower it"
            )
        if self.loss.kind == "ce" and self.evaluate.metric == "map":
            raise ValueError("loss.kind ce has one class a clip: set evaluate.metric accuracy, or loss.kind bce")
        if self.model.decoder_chunk:
            raise ValueError(
                f"model.decoder_chunk is {self.model.decoder_chunk}, but a classifier has no decoder; leave it out"
            )
        return self

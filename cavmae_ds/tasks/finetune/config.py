"""A finetuning run: what it trains, how it is evaluated, and what its sections must agree on.

Defaults are the official recipes' (spec/cav-mae.md 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.config.sections.base import OnResume, Positive, Section
from cavmae_ds.config.sections.classifier import ClassifierSection
from cavmae_ds.config.sections.run import NextSteps, RunConfig


class ClassificationLossConfig(Section):
    """What is minimised."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    kind: Literal["bce", "ce"] = "bce"
    """Binary cross-entropy of every class (clips of several classes), or cross-entropy (of exactly one)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Moves so much of each target to all classes alike (spec/cav-mae.md 3.6); not in evaluation."""


class AverageConfig(Section):
    """A plain mean of the weights after several epochs: what is evaluated in the end (spec/cav-mae.md 4.5)."""

    on_resume: ClassVar[OnResume] = OnResume.FIXED

    from_epoch: Annotated[int, Field(ge=0)] = 0
    """First epoch whose weights count, from 1; 0 averages nothing."""
    to_epoch: Annotated[int, Field(ge=0)] = 0
    """Last epoch whose weights count."""

    @model_validator(mode="after")
    def _a_range(self) -> AverageConfig:
        if bool(self.from_epoch) != bool(self.to_epoch) or self.from_epoch > self.to_epoch:
            raise ValueError(
                f"from_epoch and to_epoch must be a range of epochs, from 1 on, or both 0, got {self.from_epoch} to "
                f"{self.to_epoch}"
            )
        return self

    @property
    def on(self) -> bool:
        """True if weights are averaged."""
        return self.from_epoch > 0


class EvaluateConfig(Section):
    """How a finetuned model is judged (spec/cav-mae.md 5.1)."""

    on_resume: ClassVar[OnResume] = OnResume.FREE

    metric: Literal["map", "accuracy"] = "map"
    """What the best epoch is best in: mean average precision (clips of several classes), or accuracy."""
    every_epochs: Positive = 1
    """Epochs between evaluations while training, of the middle frame alone."""
    frames: Literal[1, 10] = 10
    """Frames of each clip whose probabilities are averaged in the final evaluation; 1 is the middle frame."""
    batch: Positive = 64
    """Clips of one forward pass on one rank."""


class FinetuneConfig(RunConfig):
    """One run that trains a classifier: a YAML file holds the differences from these defaults."""

    script: ClassVar[str] = "launch/finetune.py"
    title: ClassVar[str] = "finetuning"

    task: Annotated[Literal["finetune"], OnResume.FIXED] = "finetune"
    classifier: ClassifierSection
    augment: AugmentConfig = AugmentConfig()
    loss: ClassificationLossConfig = ClassificationLossConfig()
    average: AverageConfig = AverageConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @classmethod
    def next_steps(cls, settings: Mapping[str, Any], folder: str, data: str, averaged: bool) -> NextSteps:
        """Scores."""
        weights = " --weights averaged" if averaged else ""
        yield (
            "its scores in every mode, with pictures",
            f"cavmae evaluate {folder} --data {data} --mode all{weights}",
        )

    @property
    def model_kind(self) -> str:
        """Classifiers of several kinds belong to a family."""
        return self.classifier.kind

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
        return self

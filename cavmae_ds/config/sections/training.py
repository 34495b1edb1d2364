"""How the weights are found: optimizer, batch, checkpoints, curves."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.base import OnResume, Positive, Section, Share, Weight, filled_in

OPTIMIZER_CONSTANTS: dict[str, dict[str, float]] = {
    "lamb": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6},  # You et al., arXiv 1904.00962
    "lars": {"beta1": 0.9},  # You et al., arXiv 1708.03888
    "lion": {"beta1": 0.9, "beta2": 0.99},  # Chen et al., arXiv 2302.06675
}
"""Optimizer -> keys of the `optim` section that differ from their defaults, which are Adam's in CAV-MAE."""


class OptimConfig(Section):
    """The optimizer and the course of its learning rate."""

    on_resume: ClassVar[OnResume] = OnResume.TUNABLE

    name: Annotated[Literal["adamw", "adam", "lamb", "lars", "lion"], OnResume.FIXED] = "adamw"
    """adamw: the usual choice, to some thousand clips a step. adam: the official recipe, decay inside the gradient and
    of every parameter. lamb, lars: a step in proportion to each layer's weights, Adam's or momentum's, for batches at
    which adamw diverges. lion: sign of the momentum, half of Adam's states; a rate 3 to 10 times lower, as much more
    decay. beta1, beta2 and eps default to what the optimizer's paper says (OPTIMIZER_CONSTANTS above)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate, of reference_batch if lr_rule scales it, else of the global batch as it is."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """How the peak follows the batch: not at all, times global_batch / reference_batch, or times the root of that."""
    reference_batch: Positive | None = None
    """Clips of one step that learning_rate was found for; only with lr_rule linear or sqrt."""
    beta1: Share = 0.95
    """Decay of the first moment; momentum of lars."""
    beta2: Share = 0.999
    """Decay of the second moment; of lion's only one; lars has none."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment; to the norm of the gradient in lars; lion has none."""
    weight_decay: Weight = 5e-7
    """Decoupled decay (adam: coupled, as official); biases, norms, tokens and position tables are exempt (adam: no)."""
    clip_grad_norm: Weight = 0.0
    """Largest norm of the whole gradient; 0 never clips."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up: cosine to the final share, the official step decay by epochs, or flat."""
    warmup_clips: Annotated[int, Field(ge=0)] = 0
    """Clips of linear warm-up: it lasts as long whatever the batch."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the peak rate that the cosine ends at."""
    decay_start_epoch: Positive = 10
    """Step decay: finished epochs before the first drop."""
    decay_every_epochs: Positive = 5
    """Step decay: epochs between drops."""
    decay_factor: Share = 0.5
    """Step decay: what each drop multiplies the rate by."""

    @model_validator(mode="before")
    @classmethod
    def _usual_constants(cls, values: Any) -> Any:
        return filled_in(values, OPTIMIZER_CONSTANTS, "name")

    @model_validator(mode="after")
    def _a_rule_has_a_reference(self) -> OptimConfig:
        if (self.lr_rule == "none") != (self.reference_batch is None):
            raise ValueError(
                f"lr_rule linear or sqrt goes with reference_batch and none without it, got lr_rule={self.lr_rule} and "
                f"reference_batch={self.reference_batch}; say for how many clips a step learning_rate is meant"
            )
        return self

    def peak_learning_rate(self, global_batch: int) -> float:
        """Learning rate after the warm-up for steps of so many clips."""
        if self.reference_batch is None:
            return self.learning_rate
        grown = global_batch / self.reference_batch
        return self.learning_rate * (grown if self.lr_rule == "linear" else math.sqrt(grown))

    def warmup_steps(self, global_batch: int) -> int:
        """Optimizer steps that the warm-up takes, the last one perhaps in part."""
        return math.ceil(self.warmup_clips / global_batch)


class TrainConfig(Section):
    """How much, in which portions, with which numbers."""

    seed: Annotated[int, Field(ge=0, lt=2**32), OnResume.ORDER] = 0
    """Decides initial weights, order, masks and frames."""
    global_batch: Annotated[Positive, OnResume.FIXED] = 256
    """Clips of one optimizer step, over all ranks and micro-batches."""
    micro_batch: Annotated[Positive, OnResume.CANDIDATES] = 64
    """Clips of one forward pass on one rank."""
    epochs: Annotated[Positive | None, OnResume.TUNABLE] = None
    """Length of the run in passes over the data; give this or steps."""
    steps: Annotated[Positive | None, OnResume.TUNABLE] = None
    """Length of the run in optimizer steps; give this or epochs."""
    precision: Annotated[Literal["bf16", "fp32"], OnResume.FIXED] = "bf16"
    """Numbers of weights and activations; the optimizer keeps fp32 either way."""
    ema_clips: Annotated[int, Field(ge=0), OnResume.FIXED] = 0
    """Horizon of a running mean of the weights, clips: each step keeps exp(-global_batch / ema_clips) of it. 0: none.
    Saved as ema.safetensors with each checkpoint."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give exactly one of epochs and steps, got epochs={self.epochs} and steps={self.steps}")
        return self


class CheckpointConfig(Section):
    """When to save, where to, and how much to keep."""

    on_resume: ClassVar[OnResume] = OnResume.FREE

    address: Annotated[str, OnResume.LOCATION] = ""
    """s3://bucket/prefix for the checkpoints of this run alone: written to the run folder, they are sent there in the
    background, and a start takes the newest of both. Empty: the run folder only, which all hosts must then share."""
    every_steps: Positive = 1000
    """Optimizer steps between checkpoints; the last step is always saved."""
    every_minutes: Weight = 0.0
    """And a checkpoint when there was none for so long; 0: by steps alone."""
    keep_last: Positive = 2
    """Checkpoints kept; older ones are removed after a new one is whole."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Checkpoints after multiples of so many optimizer steps are never removed; 0: no others than the last."""

    @model_validator(mode="after")
    def _a_bucket_has_a_prefix(self) -> CheckpointConfig:
        if self.address and not re.fullmatch(r"s3://[^/]+/.*[^/]/?", self.address):
            raise ValueError(f"address must be s3://bucket/prefix, or empty for the run folder, got {self.address!r}")
        return self


class MonitorConfig(Section):
    """What TensorBoard and the progress line show, and how often."""

    on_resume: ClassVar[OnResume] = OnResume.FREE

    log_every: Positive = 20
    """Optimizer steps between points of the curves; reading the losses waits for the device."""
    pictures_every: Annotated[int, Field(ge=0)] = 500
    """Optimizer steps between pictures of reconstructions; 0 draws none."""
    pictures: Positive = 4
    """Clips in a picture."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between validations; 0 never validates."""
    validate_batch: Positive = 64
    """Clips of one forward pass of validation on one rank, and the candidates of its contrastive loss."""
    probe_every: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between retrieval probes of the clips that validation uses; 0 never probes."""
    probe_clips: Annotated[int, Field(ge=2)] = 2000
    """Clips of a probe, from all over the validation clips: what one is searched among."""
    norms_every: Annotated[int, Field(ge=0)] = 100
    """Optimizer steps between norms of each block's weights and gradients; 0 draws none."""

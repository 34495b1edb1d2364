"""Pretraining: masked clips, two losses, and both measured on clips that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import nn

from cavmae_ds.config.ds_config import read_fragment
from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.data.transforms.augment import SoundAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import ConfigError
from cavmae_ds.models import family_of
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.plan.activations import activations
from cavmae_ds.plan.modes import modes_of
from cavmae_ds.plan.states import count, states
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.losses import measured_fields
from cavmae_ds.tasks.pretrain.plan import PretrainPlan
from cavmae_ds.tasks.task import Metric, StepOutput, Task
from cavmae_ds.training.batch_plan import batch_plan

METRICS = {
    "total": Metric("loss/total", "loss {:.4f}"),
    "mae_audio": Metric("loss/mae_audio"),
    "mae_image": Metric("loss/mae_image"),
    "contrastive": Metric("loss/contrastive"),
    "in_batch_accuracy": Metric("retrieval/in_batch_accuracy", "in-batch {:.0%}"),
    "v2a_accuracy": Metric("retrieval/v2a_accuracy"),
    "a2v_accuracy": Metric("retrieval/a2v_accuracy"),
}
"""Field of PretrainLosses -> its curve."""


class Pretraining(Task):
    """`task: pretrain`."""

    def __init__(self, cfg: PretrainConfig, plan: PretrainPlan):
        super().__init__(cfg, plan)
        self.metrics = tuple(METRICS[field] for field in measured_fields(cfg.contrastive))

    @classmethod
    def resolve(cls, cfg: PretrainConfig, ranks: int, clips: int | None = None) -> PretrainPlan:
        """See Task. Raises ConfigError as well if parts of the batch that are compared reach over micro-batches."""
        family = family_of(cfg.model.family)
        common = batch_plan(cfg, family.inputs(cfg.model, cfg.task), ranks, clips)
        accumulation, chunks = common["accumulation"], cfg.contrastive.chunks
        if chunks and chunks % accumulation and not cfg.contrastive.two_pass:
            raise ConfigError(
                f"contrastive.negatives chunk={chunks} must be a multiple of the {accumulation} micro-batches of a "
                "step, or its parts reach over several; choose a larger train.micro_batch or contrastive.two_pass: true"
            )
        parameters = count(cfg)
        held = states(cfg, read_fragment(cfg), parameters, ranks)
        saved = activations(
            cast(ModelConfig, cfg.model), cast(MaskConfig, cfg.mask), cfg.loss, cfg.train.precision,
            cfg.train.micro_batch, modes_of(cfg), parameters.decoder,
        )  # fmt: skip
        return PretrainPlan(
            **common,
            parameters=parameters.total,
            trainable_parameters=parameters.trainable,
            gflop_per_clip=round(family.flops["pretrain"](cfg.model, cfg.mask) / 1e9, 2),
            states_gib_per_rank=round(held.total / 2**30, 3),
            activations_gib_per_rank=round(saved.total / 2**30, 3),
        )

    @classmethod
    def build_model(cls, cfg: PretrainConfig, classes: int = 0) -> nn.Module:
        """The masked autoencoder."""
        normalisation = training_normalisation(cfg.data.audio_mean, cfg.data.audio_std)
        return family_of(cfg.model.family).build["pretrain"](cfg.model, normalisation)

    @classmethod
    def unused_parameters(cls, cfg: PretrainConfig, model: Any) -> set[str]:
        """Those of a loss whose weight is 0."""
        return model.unused_parameters(mae=cfg.loss.mae_weight > 0, contrastive=cfg.loss.contrastive_weight > 0)

    def start(self, world: World, engine: Any) -> None:
        """Build the step and the validation."""
        # These bring the engine and streaming along, which a dry run and a plan spare.
        from cavmae_ds.tasks.pretrain.step import TrainingStep
        from cavmae_ds.tasks.pretrain.validation import Validation

        cfg = self.cfg
        plain = FrontEnd(self.inputs, world.device)
        noise = _noise(cfg) if cfg.augment.noise else None
        self.front_end = FrontEnd(self.inputs, world.device, noise, cfg.train.seed)
        self._step = TrainingStep(cfg, self.plan.accumulation, world, engine, self.front_end)
        validating = cfg.monitor.validate_every or cfg.monitor.probe_every
        self._validation = Validation(cfg, self.plan.total_steps, world, engine, plain) if validating else None

    def training_step(self, micro_batches: Iterable[Ready]) -> StepOutput:
        """See TrainingStep."""
        return self._step(micro_batches)

    def validate(self, step: int) -> Mapping[str, float]:
        """See Validation."""
        return self._validation.after(step) if self._validation else {}

    def figures(self, done: StepOutput) -> Mapping[str, Any]:
        """Inputs, what the encoder sees of them, and the reconstructions; none if nothing is reconstructed."""
        from cavmae_ds.evaluation.reconstruction_figure import draw_reconstructions, drawable, figure_pixels

        if not drawable(done.output):
            return {}
        names, normalised = done.evidence[-1].clip_ids, self.cfg.loss.normalise_pixels
        figure = draw_reconstructions(done.output, normalised, self.cfg.monitor.pictures, names)
        return {"reconstructions": figure_pixels(figure)}

    def next_commands(self) -> tuple[str, ...]:
        """Retrieval scores and reconstructions."""
        return (
            "cavmae evaluate {run_dir} --data {data}",
            "cavmae inpaint {run_dir} --data {data} --out {run_dir}/inpainted.png",
        )


def _noise(cfg: PretrainConfig) -> SoundAugmentation:
    return SoundAugmentation(AugmentConfig(freqm=0, timem=0), cfg.train.seed, cfg.data.audio_std)

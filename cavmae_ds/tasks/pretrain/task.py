"""Pretraining: masked clips, two losses, and both measured on clips that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from cavmae_ds.config.ds_config import read_fragment
from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.data.transforms.augment import SoundAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import ConfigError
from cavmae_ds.models import family_of
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.plan.states import count, model_numbers, states
from cavmae_ds.tasks import inputs_of
from cavmae_ds.tasks.pretrain.comparison import across_clips
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.forward import MaskedForward
from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses
from cavmae_ds.tasks.pretrain.plan import PretrainPlan
from cavmae_ds.tasks.task import AcrossClips, Metric, StepOutput, Task, Variant
from cavmae_ds.training.batch_plan import batch_plan

CHUNK = 128
"""Clips that a decoder takes at a time in plans: enough work for a GPU [E]."""
TWO_PASS = "contrastive.two_pass"
PROGRESS = {"total": "loss {:.4f}", "in_batch_accuracy": "in-batch {:.0%}"}
"""Name of a term of the losses -> how the progress line shows it."""


class Pretraining(Task):
    """`task: pretrain`."""

    def __init__(self, cfg: PretrainConfig, plan: PretrainPlan):
        super().__init__(cfg, plan)
        names = masked_forward(cfg).terms(cfg.contrastive.direction)
        self.metrics = tuple(Metric(_curve(name), PROGRESS.get(name, "")) for name in names)

    @classmethod
    def resolve(cls, cfg: PretrainConfig, ranks: int, clips: int | None = None) -> PretrainPlan:
        """See Task. Raises ConfigError as well if parts of the batch that are compared reach over micro-batches."""
        common = batch_plan(
            inputs_of(cfg), ranks, clips,
            train=cfg.train, optim=cfg.optim, data=cfg.data, ds_config=cfg.ds_config,
        )  # fmt: skip
        cls.check_accumulation(cfg, common["accumulation"])
        held = states(cfg, read_fragment(cfg.ds_config, cfg.train.precision), count(cfg), ranks)
        return PretrainPlan(
            **common,
            **model_numbers(cfg),
            states_gib_per_rank=round(held.total / 2**30, 3),
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

    @classmethod
    def measured_loss(cls, cfg: PretrainConfig, model: Any, ready: Ready) -> tuple[Tensor, Any]:
        """See Task; clips are compared within the micro-batch."""
        output = masked_forward(cfg)(model, ready)
        contrast = contrast_within(output, cfg.contrastive) if cfg.loss.contrastive_weight else None
        return pretrain_losses(output, contrast, cfg.loss).total, output

    @classmethod
    def first_pass(cls, cfg: PretrainConfig, model: Any, ready: Ready) -> PretrainOutput:
        """The features of a step in two passes."""
        return masked_forward(cfg)(model, ready, mae=False)

    @classmethod
    def variants(cls, cfg: PretrainConfig, clips: int) -> list[Variant]:
        """Less memory for the model, then two passes as well."""
        savers, compares = cfg.model.memory_savers, cfg.loss.contrastive_weight > 0
        lean = savers(cfg.task, min(CHUNK, clips) if cfg.loss.mae_weight else 0)
        ways = [(name, values, False) for name, values in savers(cfg.task, 0)[:1] + lean]
        ways += [(f"{name} + two-pass".removeprefix("plain + "), values, True) for name, values in lean if compares]
        variants = [Variant(name, tuple(values.items()), ((TWO_PASS, both),)) for name, values, both in ways]
        return list(dict.fromkeys(variants))

    @classmethod
    def across_clips(cls, cfg: PretrainConfig, ranks: int) -> AcrossClips:
        """Of the contrastive loss."""
        return across_clips(cfg, ranks)

    @classmethod
    def check_accumulation(cls, cfg: PretrainConfig, accumulation: int) -> None:
        """Raises ConfigError if parts of the batch that are compared reach over micro-batches."""
        chunks = cfg.contrastive.chunks
        if chunks and chunks % accumulation and not cfg.contrastive.two_pass:
            raise ConfigError(
                f"contrastive.negatives chunk={chunks} must be a multiple of the {accumulation} micro-batches of a "
                "step, or its parts reach over several; choose a larger train.micro_batch or contrastive.two_pass: true"
            )

    def start(self, world: World, engine: Any) -> None:
        """Build the step and the validation."""
        # These bring the engine and streaming along, which a dry run and a plan spare.
        from cavmae_ds.data.loading.evaluation import ValidationClips
        from cavmae_ds.tasks.pretrain.step import TrainingStep
        from cavmae_ds.tasks.pretrain.validation import Validation

        cfg = self.cfg
        plain = FrontEnd(self.inputs, world.device)
        noise = _noise(cfg) if cfg.augment.noise else None
        self.front_end = FrontEnd(self.inputs, world.device, noise, cfg.train.seed)
        forward = masked_forward(cfg)
        self._step = TrainingStep(forward, cfg.contrastive, self.plan.accumulation, world, engine, self.front_end)
        validating = cfg.monitor.validate_every or cfg.monitor.probe_every
        self._validation = None
        if validating:
            clips = ValidationClips(cfg.data, world, plain)
            self._validation = Validation(
                clips, forward, cfg.contrastive, cfg.monitor, self.plan.total_steps, world, engine
            )

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


def masked_forward(cfg: PretrainConfig) -> MaskedForward:
    """The forward pass of a run."""
    return MaskedForward(cfg.model, cfg.mask, cfg.loss, cfg.train.seed)


def _curve(term: str) -> str:
    return f"retrieval/{term}" if term.endswith("_accuracy") else f"loss/{term}"


def _noise(cfg: PretrainConfig) -> SoundAugmentation:
    return SoundAugmentation(AugmentConfig(freqm=0, timem=0), cfg.train.seed, cfg.data.audio_std)

"""Finetuning a classifier: whole clips, augmented, one loss of their labels, and scores of clips that are held out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cavmae_ds.data.transforms.augment import SoundAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.errors import ConfigError
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch
from cavmae_ds.models import family_of
from cavmae_ds.plan.states import model_numbers
from cavmae_ds.tasks import inputs_of
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.losses import run_classifier
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.tasks.finetune.weight_average import EpochAverage
from cavmae_ds.tasks.task import LrScale, Metric, StepOutput, Task
from cavmae_ds.training.batch_plan import batch_plan, class_names

log = logging.getLogger(__name__)

AUDIOSET_CLASSES = 527
"""Assumed where neither data nor classifier.classes say how many there are."""


class Finetuning(Task):
    """`task: finetune`."""

    metrics = (Metric("loss/total", "loss {:.4f}"), Metric("train/accuracy", "accuracy {:.0%}"))

    def __init__(self, cfg: FinetuneConfig, plan: FinetunePlan):
        super().__init__(cfg, plan)
        self.mixup = cfg.augment.mixup

    @classmethod
    def resolve(cls, cfg: FinetuneConfig, ranks: int, clips: int | None = None) -> FinetunePlan:
        """See Task. Raises ConfigError as well if there are no classes, or fewer than the shards name."""
        common = batch_plan(
            inputs_of(cfg), ranks, clips,
            train=cfg.train, optim=cfg.optim, data=cfg.data, ds_config=cfg.ds_config,
        )  # fmt: skip
        names = class_names(cfg.data) if clips is None else ()
        classes = cfg.classifier.classes or len(names)
        if clips is not None and not classes:
            classes = AUDIOSET_CLASSES
            log.info("no data is looked at: %d classes are assumed, classifier.classes says otherwise", classes)
        if classes < max(len(names), 1):
            raise ConfigError(
                f"classifier.classes must be at least the {len(names)} classes that the training shards name, got "
                f"{classes}; leave it out, or prepare the clips with labels if they name none"
            )
        return FinetunePlan(
            **common,
            **model_numbers(cfg, classes),
            classes=classes,
            class_names=names,
        )

    @classmethod
    def build_model(cls, cfg: FinetuneConfig, classes: int = 0) -> nn.Module:
        """The classifier, with classifier.classes, or `classes` where those are left to the data, or AudioSet's."""
        normalisation = training_normalisation(cfg.data.audio_mean, cfg.data.audio_std)
        classes = cfg.classifier.classes or classes or AUDIOSET_CLASSES
        return family_of(cfg.model.family).build["finetune"](cfg.model, cfg.classifier, classes, normalisation)

    @classmethod
    def unused_parameters(cls, cfg: FinetuneConfig, model: Any) -> set[str]:
        """Those of a modality that the mode does not read, and everything but the head of a linear probe."""
        unused = model.unused_parameters(cfg.classifier.mode)
        if cfg.classifier.freeze_base:
            head = family_of(cfg.model.family).head
            unused |= {name for name, _ in model.named_parameters() if not name.startswith(head)}
        return unused

    @classmethod
    def measured_loss(cls, cfg: FinetuneConfig, model: Any, ready: Ready) -> tuple[Tensor, Any]:
        """See Task."""
        logits, losses = run_classifier(model, ready, cfg.classifier.mode, cfg.loss)
        return losses.total, logits

    @classmethod
    def lr_scale(cls, cfg: FinetuneConfig) -> LrScale:
        """The head at head_lr_ratio; the encoder at layer_decay ** (layers between it and the head).

        Layer-wise decay: Clark et al., arXiv 2003.10555; MAE's finetuning uses it.
        """
        family, classifier = family_of(cfg.model.family), cfg.classifier
        last = family.last_depth(cfg.model)

        def scale(name: str) -> float:
            if name.startswith(family.head):
                return classifier.head_lr_ratio
            return classifier.layer_decay ** (last - family.depth(cfg.model, name))

        return scale

    def weight_means(self, engine: Any, world: World) -> Sequence[RunningMean]:
        """The mean over epochs of section average."""
        if not self.cfg.average.on:
            return ()
        return (EpochAverage(engine, world, self.cfg.average, self.plan.steps_per_epoch),)

    def start(self, world: World, engine: Any) -> None:
        """Build the step, the validation and the final evaluation."""
        # These bring the engine and streaming along, which a dry run spares.
        from cavmae_ds.data.loading.evaluation import ValidationClips
        from cavmae_ds.tasks.finetune.final_evaluation import FinetuneEnd
        from cavmae_ds.tasks.finetune.step import FinetuneStep
        from cavmae_ds.tasks.finetune.validation import ClassifierValidation

        cfg = self.cfg
        augmentation = SoundAugmentation(cfg.augment, cfg.train.seed, cfg.data.audio_std)
        self.front_end = FrontEnd(self.inputs, world.device, augmentation, cfg.train.seed)
        self._step = FinetuneStep(cfg.loss, engine, mode=cfg.classifier.mode)
        plain = FrontEnd(self.inputs, world.device)
        validating = cfg.data.validation or cfg.data.validation_share
        clips = ValidationClips(cfg.data, world, plain) if validating else None
        self._validation = clips and ClassifierValidation(
            clips, cfg.evaluate, cfg.loss, self.plan, world, engine, mode=cfg.classifier.mode, run_dir=cfg.run_dir
        )
        build = partial(self.build_model, cfg, self.plan.classes)
        self._end = FinetuneEnd(cfg, self.plan, world, clips, plain, build)

    def training_step(self, micro_batches: Iterable[Ready]) -> StepOutput:
        """See FinetuneStep."""
        return self._step(micro_batches)

    def validate(self, step: int) -> Mapping[str, float]:
        """See ClassifierValidation."""
        return self._validation.after(step) if self._validation else {}

    def next_commands(self) -> tuple[str, ...]:
        """Scores of the weights that count, and the weights as one file."""
        weights = "--weights averaged " if self.cfg.average.on else ""
        return (
            f"cavmae evaluate {{run_dir}} {weights}--data {{data}}",
            "cavmae export {run_dir} --out {run_dir}/classifier.safetensors",
        )

    def at_end(self, start: int, watch: Watch) -> None:
        """See FinetuneEnd."""
        self._end(start, watch)

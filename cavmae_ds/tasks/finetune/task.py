"""Finetuning a classifier (`deepspeed launch/finetune.py RUN.yaml`): what it brings to the training loop."""

from __future__ import annotations

from functools import partial
from typing import Any

from cavmae_ds.data.transforms.augment import SoundAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.distributed.process_group import World
from cavmae_ds.fault_tolerance.signals import StopRequests
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.final_evaluation import FinetuneEnd
from cavmae_ds.tasks.finetune.step import FinetuneStep
from cavmae_ds.tasks.finetune.validation import ClassifierValidation
from cavmae_ds.training.batch_plan import FinetuneNumbers
from cavmae_ds.training.loop import Parts, train


def finetune(cfg: FinetuneConfig, numbers: FinetuneNumbers, stop: StopRequests) -> None:
    """Train to the end of the run (see loop.train), and score what was learnt (see FinetuneEnd)."""
    train(cfg, numbers, partial(finetuning_parts, cfg, numbers), stop)


def finetuning_parts(cfg: FinetuneConfig, numbers: FinetuneNumbers, world: World, engine: Any) -> Parts:
    """Whole clips, augmented, and one loss of their labels; scores of clips that are held out."""
    augmentation = SoundAugmentation(cfg.augment, cfg.train.seed, cfg.data.audio_std)
    front_end = FrontEnd(cfg.model, world.device, augmentation)
    validating = cfg.data.validation or cfg.data.validation_share
    validation = ClassifierValidation(cfg, numbers, world, engine) if validating else None
    at_end = FinetuneEnd(cfg, numbers, world, validation.clips if validation else None)
    return Parts(front_end, FinetuneStep(cfg, numbers.classes, engine), validation, cfg.augment.mixup, at_end)

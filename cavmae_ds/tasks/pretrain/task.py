"""Pretraining (`deepspeed launch/pretrain.py RUN.yaml`): what it brings to the training loop."""

from __future__ import annotations

from functools import partial
from typing import Any

from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.data.transforms.augment import SoundAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.distributed.process_group import World
from cavmae_ds.fault_tolerance.signals import StopRequests
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.step import TrainingStep
from cavmae_ds.tasks.pretrain.validation import Validation
from cavmae_ds.training.batch_plan import RunNumbers
from cavmae_ds.training.loop import Parts, train


def pretrain(cfg: PretrainConfig, numbers: RunNumbers, stop: StopRequests) -> None:
    """Train to the end of the run; see loop.train."""
    train(cfg, numbers, partial(pretraining_parts, cfg, numbers), stop)


def pretraining_parts(cfg: PretrainConfig, numbers: RunNumbers, world: World, engine: Any) -> Parts:
    """Masked clips, both losses, and both looked at on clips that are held out."""
    plain = FrontEnd(cfg.model, world.device)
    front_end = FrontEnd(cfg.model, world.device, _noise(cfg)) if cfg.augment.noise else plain
    step = TrainingStep(cfg, numbers.accumulation, world, engine, front_end)
    validating = cfg.monitor.validate_every or cfg.monitor.probe_every
    validation = Validation(cfg, numbers.total_steps, world, engine, plain) if validating else None
    return Parts(front_end, step, validation)


def _noise(cfg: PretrainConfig) -> SoundAugmentation:
    return SoundAugmentation(AugmentConfig(freqm=0, timem=0), cfg.train.seed, cfg.data.audio_std)

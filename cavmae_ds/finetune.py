"""Finetuning a classifier (`deepspeed launch/finetune.py RUN.yaml`): what it brings to the training loop."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.layout import AVERAGED
from cavmae_ds.checkpoint.shelf import open_shelf
from cavmae_ds.checkpoint.weights import export_weights
from cavmae_ds.config import FinetuneConfig
from cavmae_ds.config.derived import FinetuneNumbers
from cavmae_ds.data.augment import SoundAugmentation
from cavmae_ds.data.front_end import FrontEnd
from cavmae_ds.distributed import World
from cavmae_ds.finetune_step import FinetuneStep
from cavmae_ds.loop import Parts, train
from cavmae_ds.survival.signals import StopRequests
from cavmae_ds.validate_classifier import ClassifierValidation

AVERAGED_WEIGHTS = "averaged.safetensors"
"""In the run folder, when the run is over: the mean of the weights after some epochs (section average)."""


def finetune(cfg: FinetuneConfig, numbers: FinetuneNumbers, stop: StopRequests) -> None:
    """Train to the end of the run (see loop.train); the first rank then writes the averaged weights, if there are."""
    train(cfg, numbers, partial(finetuning_parts, cfg, numbers), stop)
    if cfg.average.on and os.environ["RANK"] == "0":
        write_averaged(cfg)


def write_averaged(cfg: FinetuneConfig) -> None:
    """The averaged weights of the newest checkpoint, as one file in the run folder. Raises CheckpointError."""
    newest = whole_checkpoints(cfg.run_dir)[-1]
    manifest, file = read_manifest(newest), cfg.run_dir / AVERAGED_WEIGHTS
    if all((newest / name).is_file() for name in manifest.files):
        export_weights(newest, file, AVERAGED)
        return
    # Hosts without a common disk have the files of their own ranks; all of them are in the bucket.
    shelf, name = open_shelf(f"{cfg.checkpoint.address}/{newest.name}")
    with shelf.opened(name, manifest, lambda count: None) as folder:
        export_weights(folder, file, AVERAGED)


def finetuning_parts(cfg: FinetuneConfig, numbers: FinetuneNumbers, world: World, engine: Any) -> Parts:
    """Whole clips, augmented, and one loss of their labels; scores of clips that are held out."""
    augmentation = SoundAugmentation(cfg.augment, cfg.train.seed, cfg.data.audio_std)
    front_end = FrontEnd(cfg.model, world.device, augmentation)
    validating = cfg.data.validation or cfg.data.validation_share
    validation = ClassifierValidation(cfg, numbers, world, engine) if validating else None
    return Parts(front_end, FinetuneStep(cfg, numbers.classes, engine), validation, cfg.augment.mixup)

"""Finetuning on the 16 clips of whole_batch.py, with labels: how ranks may do it, and one plain torch process."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.data.format.clips import Batch, collate
from cavmae_ds.data.transforms.augment import SoundAugmentation, targets
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.classifier import CAVMAEFT, CLASSIFIERS
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.losses import classification_losses
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.tasks.task import freeze_unused
from cavmae_ds.training.optim.build import build_optimizer
from tests.data.transforms.test_augment import clip

CLIPS, STEPS, CLASSES = 16, 2, 5


class Way(NamedTuple):
    """One way to finetune on the same 16 clips a step."""

    ranks: int = 1
    stage: int = 2
    accumulation: int = 1
    mode: str = "multimodal"
    kind: str = "bce"
    freeze_base: bool = False
    model: str = "audio-visual"

    def config(self) -> FinetuneConfig:
        """Small; decay is on, so a parameter that is not used would shrink."""
        return validate_run(
            {
                "ds_config": f"ds_configs/zero{self.stage}.json",
                "model": {
                    "embed_dim": 32, "num_heads": 4, "modality_specific_depth": 1, "shared_depth": 2, "image_size": 32,
                    "audio_frames": 64,
                },
                "classifier": {
                    "model": self.model, "mode": self.mode, "freeze_base": self.freeze_base, "head_lr_ratio": 10,
                },
                "augment": {"freqm": 20, "timem": 20},
                "loss": {"kind": self.kind},
                "evaluate": {"metric": "accuracy"},
                # eps above rounding: Adam would blow up the gradient of key biases, which is zero but for rounding
                "optim": {
                    "name": "adam", "learning_rate": 1e-3, "eps": 1e-5, "weight_decay": 0.05, "schedule": "constant",
                },
                "train": {
                    "global_batch": CLIPS, "micro_batch": CLIPS // self.ranks // self.accumulation, "epochs": STEPS,
                    "precision": "fp32", "seed": 7,
                },
            },
            "finetune",
        )  # fmt: skip

    def numbers(self) -> FinetunePlan:
        """The derived numbers that an engine needs, without shards to count; the others are 0."""
        zeros = {field.name: 0 for field in dataclasses.fields(FinetunePlan)}
        needed = {"accumulation": self.accumulation, "total_steps": 10, "steps_per_epoch": 5, "classes": CLASSES}
        return FinetunePlan(**(zeros | needed))  # type: ignore[arg-type]  # 0 for numbers of all kinds

    def front_end(self) -> FrontEnd:
        """With the augmentation of the run."""
        cfg = self.config()
        augmentation = SoundAugmentation(cfg.augment, cfg.train.seed, cfg.data.audio_std)
        return FrontEnd(inputs(cfg.model), torch.device("cpu"), augmentation)


def clips(step: int, rows: slice = slice(None)) -> Batch:
    """Some of the 16 clips of one optimizer step, every third with a partner."""
    made = []
    for number in range(CLIPS):
        index = 100 * step + number
        partner = clip(1000 + index, 9_000, [(number + 1) % CLASSES]) if number % 3 == 0 else None
        made.append(clip(index, 10_500, [number % CLASSES], partner, 0.6 if partner else 1.0))
    return collate(made[rows])


def fresh_model(cfg: FinetuneConfig) -> CAVMAEFT:
    """The model with the initial weights that every way starts from."""
    torch.manual_seed(cfg.train.seed)
    normalisation = training_normalisation(cfg.data.audio_mean, cfg.data.audio_std)
    return CLASSIFIERS[cfg.classifier.model](cfg.model, CLASSES, normalisation)


def finetune_on_one_process(way: Way) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Plain torch, no engine, no ranks, the whole batch at once. Loss of each step, final parameters."""
    cfg, front_end = way.config(), way.front_end()
    model = fresh_model(cfg)
    freeze_unused(Finetuning, cfg, model)
    optimizer = build_optimizer(
        model.named_parameters(), cfg.optim, 1e-3, torch.device("cpu"),
        lambda name: Finetuning.lr_scale(cfg)(name),
    )  # fmt: skip
    losses = []
    for step in range(STEPS):
        batch = clips(step)
        logits = model(*front_end(batch), cfg.classifier.mode)
        loss = classification_losses(logits, targets(batch, CLASSES, cfg.loss.label_smoothing), cfg.loss).total
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}

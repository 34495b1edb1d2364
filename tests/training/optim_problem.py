"""A small model whose gradients are given, and what one plain process makes of it by the rules of timm and torch."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from torch import Tensor, nn

from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.plan import PretrainPlan
from cavmae_ds.training.optim.build import parameter_groups

STEPS, CLIPS = 6, 8
HORIZON_CLIPS = 20  # of the running mean
RATE, DECAY = 0.02, 0.05
SHAPES = {  # odd sizes, so that ranks cut through layers; one is frozen
    "wide": (7, 33), "tall": (41, 5), "square": (13, 13), "bias": (33,), "norm": (5,), "token": (1, 1, 9),
    "zero": (6, 3), "frozen": (4, 4),
}  # fmt: skip


class Layers(nn.Module):
    """Parameters of some shapes; the loss is linear in them, so a gradient is a given tensor, free of rounding."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        for scale, (name, shape) in enumerate(SHAPES.items(), start=1):
            values = torch.randn(shape, generator=draw) * scale if name != "zero" else torch.zeros(shape)
            setattr(self, name, nn.Parameter(values, requires_grad=name != "frozen"))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        """The sum of all trainable parameters times their gradients."""
        return sum(
            (getattr(self, name) * gradient.to(getattr(self, name))).sum() for name, gradient in gradients.items()
        )

    def unused_parameters(self, mae: bool, contrastive: bool) -> set[str]:
        """What build_engine asks a model."""
        return {"frozen"}

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """What it asks under ZeRO-3."""
        return []


def gradients(step: int, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """This rank's gradients of one step. Their mean over the ranks is what one process gets."""
    draw = torch.Generator().manual_seed(50 + step)
    found = {}
    for name, shape in SHAPES.items():
        if name != "frozen":
            mean, apart = (torch.randn(shape, generator=draw) for _ in range(2))
            found[name] = mean + (rank - (ranks - 1) / 2) * apart
    return found


def run_config(ranks: int, name: str, fragment: str, precision: str = "fp32", **others: Any) -> PretrainConfig:
    """A run of the optimizer `name`, at a constant rate."""
    return validate_run(
        {
            "ds_config": f"ds_configs/{fragment}.json",
            "optim": {"name": name, "learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant"},
            "train": {
                "global_batch": CLIPS, "micro_batch": CLIPS // ranks, "steps": STEPS, "precision": precision,
                "ema_clips": HORIZON_CLIPS,
            },
            **others,
        }
    )  # fmt: skip


def numbers(ranks: int) -> PretrainPlan:
    """The derived numbers; eight clips a step, one micro-batch on each rank."""
    return PretrainPlan(
        ranks=ranks, clips=CLIPS, clips_by_source=(CLIPS,), epoch_clips=CLIPS, held_out_clips=0, global_batch=CLIPS,
        accumulation=1, steps_per_epoch=1, total_steps=STEPS, total_clips=CLIPS * STEPS, parameters=0,
        trainable_parameters=0, gflop_per_clip=0.0, zero_stage=0, states_gib_per_rank=0.0,
        peak_learning_rate=RATE, warmup_steps=0,
    )  # fmt: skip


def plain_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """The published rule as torch or timm have it, for one process: no engine, no code of ours but the groups."""
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model.named_parameters(), DECAY)
    ]
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=RATE, betas=(0.95, 0.999), eps=1e-8)
        case "adam":
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            return torch.optim.Adam(trained, lr=RATE, betas=(0.95, 0.999), eps=1e-8, weight_decay=DECAY)
        case "lamb":
            return timm.optim.Lamb(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=None)
        case "lars":
            return timm.optim.Lars(groups, lr=RATE, momentum=0.9, eps=1e-8)
        case "lion":
            return timm.optim.Lion(groups, lr=RATE, betas=(0.9, 0.99))
    raise ValueError(name)


def train_plainly(name: str) -> dict[str, Tensor]:
    """All parameters after STEPS steps on one process."""
    model = Layers()
    optimizer = plain_optimizer(name, model)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(gradients(step)).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}

"""Parameter groups and learning-rate schedules; schedules are pure functions of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from cavmae_ds.config import OptimConfig


def parameter_groups(named: Iterable[tuple[str, Parameter]], weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices decay, everything else (biases, norms, tokens, positions) does not.

    By shape, before the engine takes the parameters over: under ZeRO-3 they look empty (spec/engine-notes.md 2).
    """
    decayed: list[Parameter] = []
    exempt: list[Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            # Tokens and position tables are [1, L, D]: more than one axis, but no matrix.
            exempt_shape = parameter.ndim <= 1 or parameter.shape[0] == 1 or "pos_embed" in name
            (exempt if exempt_shape else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict], cfg: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """torch's AdamW, fused on a GPU; DeepSpeed shards its states. Needs no compiler, unlike DeepSpeed's own."""
    return torch.optim.AdamW(
        groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=device.type == "cuda"
    )


def learning_rate_share(step: int, cfg: OptimConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate that optimizer step `step` (0-based) uses.

    Warm-up: linear, step k of n at (k + 1) / n, so no step is wasted at zero. Then cosine from 1 to final_share at the
    last step; or the official step decay (spec/cav-mae.md 4.3): x decay_factor when decay_start_epoch epochs are done
    and every decay_every_epochs after; or constant.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    if cfg.schedule == "step":
        late = step // steps_per_epoch - cfg.decay_start_epoch
        drops = late // cfg.decay_every_epochs + 1 if late >= 0 else 0
        return cfg.decay_factor**drops
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, total_steps - 1 - cfg.warmup_steps))
    return cfg.final_share + (1 - cfg.final_share) * (1 + math.cos(math.pi * progress)) / 2

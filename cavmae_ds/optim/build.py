"""From the `optim` section and a model's parameters to a torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.optim import Lion
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from cavmae_ds.config import OptimConfig
from cavmae_ds.optim.layerwise import Lamb, Lars
from cavmae_ds.partitions import whole_shape


def build_optimizer(
    named: Iterable[tuple[str, Parameter]], cfg: OptimConfig, learning_rate: float, device: torch.device
) -> Optimizer:
    """The optimizer that cfg names over the trainable parameters, for DeepSpeed to shard.

    torch's Adams (fused on a GPU; no compiler needed, unlike DeepSpeed's own) and timm's Lion work element by element,
    so a flat slice is as good as a layer. Lamb and Lars look at layers (optim/layerwise.py): once the engine is built,
    tell them by adopt() where those are.
    """
    if cfg.name == "adam":  # official: coupled decay, of everything (spec/cav-mae.md 4.3)
        trainable = [parameter for _, parameter in named if parameter.requires_grad]
        groups = [{"params": trainable, "weight_decay": cfg.weight_decay}]
    else:
        groups = parameter_groups(named, cfg.weight_decay)
    betas, fused = (cfg.beta1, cfg.beta2), device.type == "cuda"
    match cfg.name:
        case "adam":
            return Adam(groups, lr=learning_rate, betas=betas, eps=cfg.eps, fused=fused)
        case "adamw":
            return AdamW(groups, lr=learning_rate, betas=betas, eps=cfg.eps, fused=fused)
        case "lion":
            return Lion(groups, lr=learning_rate, betas=betas)
        case "lamb":
            return Lamb(groups, lr=learning_rate, betas=betas, eps=cfg.eps)
        case "lars":
            return Lars(groups, lr=learning_rate, momentum=cfg.beta1, eps=cfg.eps)


def parameter_groups(named: Iterable[tuple[str, Parameter]], weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices decay, everything else (biases, norms, tokens, positions) does not.

    By whole shape, for sharded parameters look empty (spec/engine-notes.md 2). `layerwise` is for Lamb and Lars, which
    leave the exempt ones at the plain rate, as their papers' recipes do.
    """
    decayed: list[Parameter] = []
    exempt: list[Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            shape = whole_shape(parameter)
            # Tokens and position tables are [1, L, D]: more than one axis, but no matrix.
            exempt_shape = len(shape) <= 1 or shape[0] == 1 or "pos_embed" in name
            (exempt if exempt_shape else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "layerwise": True},
        {"params": exempt, "weight_decay": 0.0, "layerwise": False},
    ]
    return [group for group in groups if group["params"]]

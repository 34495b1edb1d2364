"""From the `optim` section and a model's parameters to a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import Lion
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.distributed.zero_layout import whole_shape
from cavmae_ds.training.optim.layerwise import Lamb, Lars

RateOf = Callable[[str], float]


def all_alike(name: str) -> float:
    """One learning rate for all."""
    return 1.0


def build_optimizer(
    named: Iterable[tuple[str, Parameter]],
    cfg: OptimConfig,
    learning_rate: float,
    device: torch.device,
    rate_of: RateOf = all_alike,
) -> Optimizer:
    """The optimizer that cfg names over the trainable parameters, for DeepSpeed to shard.

    rate_of: name of a parameter to the multiple of learning_rate that it is trained with.

    torch's Adams (fused on a GPU; no compiler needed, unlike DeepSpeed's own) and timm's Lion work element by element,
    so a flat slice is as good as a layer. Lamb and Lars look at layers (layerwise.py): once the engine is built, tell
    them by adopt() where those are.
    """
    # adam is official: coupled decay, of everything (spec/cav-mae.md 4.3)
    groups = parameter_groups(named, cfg.weight_decay, exempt=cfg.name != "adam", rate_of=rate_of)
    for group in groups:
        group["lr"] = learning_rate * group.pop("rate")
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


def parameter_groups(
    named: Iterable[tuple[str, Parameter]], weight_decay: float, exempt: bool = True, rate_of: RateOf = all_alike
) -> list[dict[str, Any]]:
    """Trainable parameters in groups of equal weight decay and equal multiples ("rate") of the learning rate.

    Matrices decay, everything else (biases, norms, tokens, positions) does not, if it is exempt. By whole shape, for
    sharded parameters look empty (spec/engine-notes.md 2). `layerwise` is for Lamb and Lars, which leave the exempt
    ones at the plain rate, as their papers' recipes do.
    """
    groups: dict[tuple[float, bool], list[Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            shape = whole_shape(parameter)
            # Tokens and position tables are [1, L, D]: more than one axis, but no matrix.
            spared = exempt and (len(shape) <= 1 or shape[0] == 1 or "pos_embed" in name)
            groups.setdefault((rate_of(name), spared), []).append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if spared else weight_decay, "layerwise": not spared, "rate": rate}
        for (rate, spared), members in sorted(groups.items(), key=lambda item: item[0])
    ]

"""What all ranks of an engine hold together, put together by other code than a checkpoint's."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import Tensor

from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import find_partitions
from cavmae_ds.training.ema import WeightAverage


def full_weights(engine: Any, world: World) -> dict[str, Tensor]:
    """Every parameter whole and in float32, on the first rank's CPU; the other ranks help and get nothing.

    DeepSpeed gathers them, from the optimizer's fp32 masters where there are any.
    """
    weights = {}
    for name, parameter in engine.module.named_parameters():
        whole = deepspeed.utils.safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if whole is None:
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().float().clone()
        if world.is_first:
            weights[name] = whole.detach().cpu().clone()
    return weights


def full_means(engine: Any, ema: WeightAverage, world: World) -> dict[str, Tensor]:
    """The running mean of every trained parameter, whole, on every rank."""
    partitions = find_partitions(engine, world)
    means = [torch.zeros(shape) for shape in partitions.shapes]
    for mean, fragments in zip(ema.means, partitions.fragments, strict=True):
        for part in fragments:
            means[part.parameter].view(-1).narrow(0, part.offset, part.numel).copy_(part.of(mean))
    return {name: partitions.over_ranks(mean) for name, mean in zip(partitions.names, means, strict=True)}

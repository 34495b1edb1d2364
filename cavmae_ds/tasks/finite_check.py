"""What is kept of a step's clips until it is known that nothing was wrong with it; nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.data.format.clips import Batch


class Evidence(NamedTuple):
    """Of one micro-batch of b clips; the tensors on the device are only read when something was wrong."""

    clip_index: Tensor  # [b] int64, on the host
    turn: Tensor  # [b] int64, on the host: how often the clip came before
    clip_ids: Sequence[str]
    finite: dict[str, Tensor]
    """Part of a clip's way -> whether it is finite, [b] bool on the device."""
    losses: dict[str, Tensor]
    """Of the whole micro-batch."""


@torch.no_grad()
def evidence(batch: Batch, ways: Mapping[str, Tensor | None], losses: Mapping[str, Tensor]) -> Evidence:
    """Evidence of a micro-batch. ways: name -> what each clip has there, [b, ...]; None where there was nothing.

    One sum over each floating-point tensor: a number that is not finite makes the sum so.
    """
    finite = {
        name: values.detach().flatten(1).sum(1, dtype=torch.float32).isfinite()
        for name, values in ways.items()
        if values is not None and values.is_floating_point() and len(values) == len(batch.clip_index)
    }
    detached = {name: value.detach() for name, value in losses.items()}
    return Evidence(batch.clip_index, batch.epoch, batch.clip_ids, finite, detached)

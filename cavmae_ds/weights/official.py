"""Official files: bare dicts of tensors, each name behind `module.` (spec/cav-mae.md 1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.models import adapter_for
from cavmae_ds.models.common.pth import read_pth
from cavmae_ds.models.common.weights import PREFIX, Weights, bare_names


def load_official(path: Path, heads: int | None = None, decoder_heads: int | None = None) -> Weights:
    """Read an official .pth file, pretrained or finetuned, with or without the prefix.

    See StateDictAdapter.recognise for the numbers of heads. Raises CheckpointError: no such file, no tensors, names
    that do not all have the prefix or all not, names or shapes that are not exactly one model's.
    """
    tensors = bare_names(read_pth(path), str(path))
    return adapter_for(tensors).recognise(tensors, str(path), heads, decoder_heads)


def save_official(weights: Mapping[str, Tensor], path: Path, prefix: bool = True) -> None:
    """Write weights (official names, no prefix) as official code reads them: a .pth file in the official order.

    The file is there whole or not at all. Raises CheckpointError for names or shapes that are not one model's.
    """
    # No shape depends on the heads, so any number does for the order.
    ordered = adapter_for(weights).recognise(weights, "the weights to save", 1, 1).tensors
    start = PREFIX if prefix else ""
    # Into an open file: given a name, torch says of a full disk only that it could not write.
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        torch.save({start + name: tensor.contiguous() for name, tensor in ordered.items()}, file)

"""Official files: bare dicts of tensors, each name behind `module.` (spec/cav-mae.md 1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import CheckpointError, shortened
from cavmae_ds.models.cavmae.state_dict import Weights, recognise
from cavmae_ds.models.common.pth import read_pth

PREFIX = "module."
MOST_REPEATED_BYTES = 1 << 28
"""Of a tensor that is larger than its storage: a few bytes in a file could else fill all memory."""


def load_official(path: Path, heads: int | None = None, decoder_heads: int | None = None) -> Weights:
    """Read an official .pth file, pretrained or finetuned, with or without the prefix.

    See recognise for the numbers of heads. Raises CheckpointError: no such file, no tensors, names that do not all
    have the prefix or all not, names or shapes that are not exactly one model's.
    """
    return recognise(bare_names(read_pth(path), str(path)), str(path), heads, decoder_heads)


def save_official(weights: Mapping[str, Tensor], path: Path, prefix: bool = True) -> None:
    """Write weights (official names, no prefix) as official code reads them: a .pth file in the official order.

    The file is there whole or not at all. Raises CheckpointError for names or shapes that are not one model's.
    """
    # No shape depends on the heads, so any number does for the order.
    ordered = recognise(weights, "the weights to save", heads=1, decoder_heads=1).tensors
    start = PREFIX if prefix else ""
    # Into an open file: given a name, torch says of a full disk only that it could not write.
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        torch.save({start + name: tensor.contiguous() for name, tensor in ordered.items()}, file)


def bare_names(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors without `module.`, which either all of their names have or none. Raises CheckpointError."""
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{source} must hold tensors by name, got the key {shortened(repr(name))}")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise CheckpointError(
                f"{source} must hold nothing but tensors of floats, got {type(value).__name__} under "
                f"{shortened(name)!r}"
            )
        if not _is_whole(value):
            raise CheckpointError(
                f"{source}: {shortened(name)} must be a dense tensor with values, got shape "
                f"{shortened(str(tuple(value.shape)))} on {value.device.type}, {value.layout}"
            )
    prefixed = [name for name in content if name.startswith(PREFIX)]
    if prefixed and len(prefixed) < len(content):
        raise CheckpointError(
            f"{source}: {len(prefixed)} of {len(content)} names start with {PREFIX!r}; all must, or none"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in content.items()}


def _is_whole(value: Tensor) -> bool:
    """Its elements are in memory: no sparse, meta or empty tensor, no row repeated until it is larger than any here."""
    if value.layout != torch.strided or value.device.type != "cpu" or not value.numel():
        return False
    return value.nbytes <= max(value.untyped_storage().nbytes(), MOST_REPEATED_BYTES)

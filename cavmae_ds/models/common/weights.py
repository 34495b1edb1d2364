"""Weights on the CPU before they are a model, and what any family's reader asks of their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cavmae_ds.data.transforms.normalise import AUDIO_MEAN, AUDIO_STD
from cavmae_ds.errors import CheckpointError, shortened

Module = TypeVar("Module", bound=nn.Module)

PREFIX = "module."
"""In front of all names in files of official programs."""
MOST_REPEATED_BYTES = 1 << 28
"""Of a tensor that is larger than its storage: a few bytes in a file could else fill all memory."""


@dataclass(frozen=True)
class Weights:
    """A whole model on the CPU, before it is one."""

    kind: str
    """pretrain, finetune, or a further one of the family's."""
    model: Any
    """The family's section `model`."""
    classes: int
    """0 if it is no classifier."""
    tensors: dict[str, Tensor]
    """Official names without a prefix, in the official order, float32."""
    source: str
    """Where they come from, for messages."""
    audio_mean: float = AUDIO_MEAN
    """What is taken from raw log-mels; the official value unless the file says otherwise."""
    audio_std: float = AUDIO_STD
    """What they are then divided by."""
    heads_known: bool = False
    """The numbers of heads were told with the weights: no shape tells them."""
    step: int | None = None
    """Optimizer steps of the run that they are of, where that is known."""


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


def fitted(weights: Weights, build: Callable[[], nn.Module], family: str) -> Weights:
    """The same in the order of the module that build makes on the meta device, and in float32.

    Raises CheckpointError for names or shapes that are not the module's.
    """
    try:
        expected = {name: tensor.shape for name, tensor in build().state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:  # more elements than torch can count
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{weights.source} has sizes that no model has: {first_line}") from error
    found = weights.tensors
    missing, unexpected = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or unexpected:
        raise CheckpointError(
            f"{weights.source} is no {weights.kind} model of {family}: " + differences(missing, unexpected)
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{weights.source}: {name} must be of shape {tuple(shape)} to fit the others, "
                f"got {tuple(found[name].shape)}"
            )
    return replace(weights, tensors={name: found[name].float() for name in expected})


def filled(module: Module, weights: Weights, device: torch.device | None) -> Module:
    """A module from the meta device with these weights, in eval mode."""
    module.load_state_dict(weights.tensors, strict=True, assign=True)
    return module.to(device or torch.device("cpu")).eval()


def differences(missing: Collection[str], unexpected: Collection[str]) -> str:
    """`2 names are missing (a, b), 1 is unexpected (c)`."""
    parts = []
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            parts.append(f"{len(names)} {'name is' if len(names) == 1 else 'names are'} {what} ({shortly(names)})")
    return ", ".join(parts)


def shortly(names: Collection[str], most: int = 4) -> str:
    """The first few of some names."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def first_problem(error: ValueError) -> str:
    """What pydantic, or a function, complained about, without ornaments."""
    details: Callable | None = getattr(error, "errors", None)
    return details()[0]["msg"].removeprefix("Value error, ") if details else str(error)

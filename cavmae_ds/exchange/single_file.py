"""One safetensors file with everything needed to use it: weights, sizes, statistics of the log-mel."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cavmae_ds.config import ModelConfig
from cavmae_ds.errors import CheckpointError
from cavmae_ds.exchange.files import unreadable, written_whole
from cavmae_ds.exchange.official import bare_names
from cavmae_ds.exchange.weights import Kind, Weights, in_official_order, recognise

HEADER = "cavmae_ds"
"""Key of the file's metadata that holds a Header as JSON."""


class Header(BaseModel):
    """What names and shapes do not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    model: ModelConfig
    classes: int
    audio_mean: float
    audio_std: float


def save_single_file(weights: Weights, path: Path) -> None:
    """Write a .safetensors file that load_single_file, or any reader of safetensors, understands."""
    header = Header(**{name: getattr(weights, name) for name in Header.model_fields})
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, {HEADER: header.model_dump_json()})


def load_single_file(path: Path, heads: int | None = None, decoder_heads: int | None = None) -> Weights:
    """Read what save_single_file wrote, or any .safetensors file of official names (see recognise for the heads).

    Raises CheckpointError: no such file, damaged, or not exactly one model's names and shapes.
    """
    source = str(path)
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = bare_names({name: file.get_tensor(name) for name in file.keys()}, source)  # noqa: SIM118
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{source!r} is no whole safetensors file: {error}") from error
    if header is None:
        return recognise(tensors, source, heads, decoder_heads)
    try:
        told = Header.model_validate(json.loads(header))
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{source!r} has a header that this version does not know; export it again") from error
    return in_official_order(
        Weights(told.kind, told.model, told.classes, tensors, source, told.audio_mean, told.audio_std, heads_known=True)
    )

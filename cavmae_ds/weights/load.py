"""Any weights, from wherever they lie, as a model that can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models import family_of, model_section
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.official import load_official
from cavmae_ds.weights.single_file import load_single_file


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what its user must know."""

    model: Any
    """Takes raw log-mels [B, frames, mel bins] and frames [B, 3, H, W] uint8; normalises them itself."""
    kind: str
    config: Any
    """Its sizes."""
    inputs: InputSpec
    """What it reads of a clip."""
    classes: int
    """0 if it is no classifier."""
    audio_mean: float
    audio_std: float
    source: str
    """Where it comes from, for messages."""
    step: int | None = None
    """Optimizer steps of the run that its weights are of, where that is known."""


def load_model(
    path: Path | str,
    ema: bool = False,
    heads: int | None = None,
    decoder_heads: int | None = None,
    device: torch.device | None = None,
) -> LoadedModel:
    """A model from a run folder, an official .pth file, or a .safetensors file: ours or with official names.

    ema takes the running mean of a run folder's weights. heads and decoder_heads are for files that tell no config
    and whose sizes are unusual (see StateDictAdapter.recognise). Everything is strict: raises CheckpointError for
    whatever is missing, unexpected or of another shape.
    """
    weights = open_weights(Path(path), ema, heads, decoder_heads)
    family = family_of(weights.model.family)
    return LoadedModel(
        family.state_dict().build(weights, device), weights.kind, weights.model,
        family.inputs(weights.model, weights.kind), weights.classes, weights.audio_mean, weights.audio_std,
        weights.source, weights.step,
    )  # fmt: skip


def open_weights(path: Path, ema: bool = False, heads: int | None = None, decoder_heads: int | None = None) -> Weights:
    """The weights of load_model, before they are a model. Same arguments, same errors."""
    if path.is_dir():
        return _of_run(path, ema)
    if ema:
        raise CheckpointError(f"{str(path)!r} is a file with one set of weights; only run folders hold a running mean")
    if path.suffix == ".safetensors":
        return load_single_file(path, heads, decoder_heads)
    if path.suffix in (".pth", ".pt"):
        return load_official(path, heads, decoder_heads)
    raise CheckpointError(
        f"{str(path)!r} holds no weights: give a run folder, an official .pth file or a .safetensors file that is there"
    )


def _of_run(run_dir: Path, ema: bool) -> Weights:
    tensors = read_weights(run_dir, ema)
    manifest, source = read_manifest(whole_checkpoints(run_dir)[-1]), str(run_dir)
    try:
        model = model_section(manifest.config["model"])
        mean, std = (float(manifest.config["data"][name]) for name in ("audio_mean", "audio_std"))
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(f"the newest checkpoint of {source!r} was made by another version: {error}") from error
    adapter, step = family_of(model.family).state_dict(), manifest.step
    kind, classes = adapter.kind_of(tensors, source)
    return adapter.in_order(Weights(kind, model, classes, tensors, source, mean, std, heads_known=True, step=step))

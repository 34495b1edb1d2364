"""Whole weights out of a checkpoint, for everybody who only reads: one process, no DeepSpeed, no launcher."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint.folder import read_manifest, whole_checkpoints
from cavmae_ds.checkpoint.layout import AVERAGED, EMA, FROZEN, MASTER, PieceReader
from cavmae_ds.checkpoint.manifest import Manifest
from cavmae_ds.errors import CheckpointError

WHOLE_NUMBERS = {"int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool}
"""Of buffers; everything else is float32."""
MADE_BY = {EMA: "train.ema_clips", AVERAGED: "section average of a finetuning run"}
"""What has a run keep a mean of its weights."""


def read_weights(run_dir: Path, ema: bool = False) -> dict[str, Tensor]:
    """The newest checkpoint's weights, or their running mean, under official names, whole, float32.

    Buffers too; whole numbers stay such.

    Raises CheckpointError if there is no checkpoint, or no mean in it.
    """
    found = whole_checkpoints(run_dir)
    if not found:
        raise CheckpointError(f"run folder {str(run_dir)!r} holds no checkpoint; pretrain first or give another folder")
    return assemble(found[-1], read_manifest(found[-1]), EMA if ema else MASTER)


def assemble(folder: Path, manifest: Manifest, state: str = MASTER) -> dict[str, Tensor]:
    """The weights of a finished checkpoint, or one of their means (layout.MEANS); see read_weights."""
    if state != MASTER and state not in manifest.states:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} holds no running mean of the weights ({state}); train with {MADE_BY[state]}, "
            "or take the weights themselves"
        )
    reader = PieceReader(sorted(manifest.files), folder.joinpath)
    weights = {}
    for name, parameter in manifest.parameters.items():
        weights[name] = torch.empty(parameter.shape, dtype=WHOLE_NUMBERS.get(parameter.dtype, torch.float32))
        # Frozen parameters are their own mean.
        reader.read(state if parameter.trained else FROZEN, name, 0, weights[name].view(-1))
    return weights


def export_weights(folder: Path, file: Path, state: str = MASTER) -> None:
    """Write the weights of a finished checkpoint, or one of their means, as one safetensors file, float32.

    Its header says what the model is (`model`, the run file's section as JSON), what its inputs are normalised with
    (`audio_mean`, `audio_std`) and where it comes from (`step`, `clips_seen`, `weights`: master, ema or averaged), so
    that it can be loaded alone. Raises CheckpointError as read_weights does, ConfigError if the file cannot be written.
    """
    manifest = read_manifest(folder)
    header = {
        "model": json.dumps(manifest.config["model"]),
        "audio_mean": str(manifest.config["data"]["audio_mean"]),
        "audio_std": str(manifest.config["data"]["audio_std"]),
        "step": str(manifest.step),
        "clips_seen": str(manifest.clips_seen),
        "weights": state,
    }
    weights = assemble(folder, manifest, state)
    with written_whole(file) as unfinished:
        save_file(weights, unfinished, header)

"""Weights under their official names, and what can be told from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from cavmae_ds.config.sections.init import Positions
from cavmae_ds.data.transforms.normalise import Normalisation, training_normalisation
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models.cavmae.classifier import CAVMAEFT, CAVMAEFTAudio
from cavmae_ds.models.cavmae.config import PRESETS, ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.positions import refit_columns
from cavmae_ds.models.common.weights import Weights, filled, first_problem, fitted, shortly

Kind = Literal["pretrain", "finetune", "finetune-audio"]
"""Which model: CAVMAE, CAVMAEFT or CAVMAEFTAudio."""

MEL_BINS = 128  # of every official model


def recognise(
    tensors: Mapping[str, Tensor], source: str, heads: int | None = None, decoder_heads: int | None = None
) -> Weights:
    """Find out which model some weights are. Names are bare.

    Shapes say everything but the numbers of heads: those of the preset of the same width, else one for each 64 of the
    encoder's width and 32 of the decoder's. Raises CheckpointError unless names and shapes are one model's exactly.
    """
    kind, classes = kind_of(tensors, source)
    model = _sizes(tensors, kind, source, heads, decoder_heads)
    weights = Weights(kind, model, classes, dict(tensors), source, heads_known=heads is not None)
    return in_official_order(weights)


def in_official_order(weights: Weights) -> Weights:
    """The same, ordered and in float32. Raises CheckpointError for names or shapes that are not its config's."""
    sizes = weights.model
    blocks = sizes.modality_specific_depth + sizes.shared_depth + sizes.decoder_depth
    if weights.kind == "pretrain" and blocks > len(weights.tensors):  # before a billion of them are built
        raise CheckpointError(
            f"{weights.source} is no {weights.kind} model of CAV-MAE: {blocks} blocks in {len(weights.tensors)} tensors"
        )
    return fitted(weights, partial(_empty, weights), "CAV-MAE")


def build(weights: Weights, device: torch.device | None = None) -> CAVMAE | CAVMAEFT:
    """The model with these weights, ready to be used (eval mode), taking raw log-mels and frames."""
    normalisation = training_normalisation(weights.audio_mean, weights.audio_std)
    return filled(_empty(weights, normalisation), weights, device)


def with_audio_frames(weights: Weights, frames: int, positions: Positions) -> Weights:
    """The same for log-mels of another length: the time axis of its position tables cut or stretched (refit_columns).

    Raises ConfigError for a length of no whole patches (naming the nearest that fit) and CheckpointError where there
    is nothing to trim.
    """
    try:
        model = ModelConfig.model_validate(weights.model.model_dump() | {"audio_frames": frames})
    except ValueError as error:
        raise ConfigError(first_problem(error)) from error
    grid, tensors = audio_grid(model), dict(weights.tensors)
    try:
        for name in ("pos_embed_a", "decoder_pos_embed_a"):
            if name in tensors:
                tensors[name] = refit_columns(tensors[name], grid.rows, grid.columns, positions)
    except ValueError as error:
        raise CheckpointError(f"{weights.source} was made for {weights.model.audio_frames} frames: {error}") from error
    return replace(weights, model=model, tensors=tensors)


def kind_of(tensors: Mapping[str, Tensor], source: str) -> tuple[Kind, int]:
    """Which model some bare names belong to, and its number of classes. Raises CheckpointError if it is none."""
    if "modality_a" in tensors and "mlp_head.1.weight" in tensors:
        classes = _shape(tensors, "mlp_head.1.weight", 2, source)[0]
        return ("finetune" if "modality_v" in tensors else "finetune-audio"), classes
    if "modality_a" in tensors and "mask_token" in tensors:
        return "pretrain", 0
    elsewhere = next((name for name in tensors if name.endswith(".modality_a")), None)
    if elsewhere:
        prefix = elsewhere.removesuffix("modality_a")
        raise CheckpointError(
            f"{source}: its names start with {prefix!r}, expected bare names or 'module.'; rename them first"
        )
    hint = "; an ImageNet MAE is taken by init.from_mae" if "cls_token" in tensors and "pos_embed" in tensors else ""
    raise CheckpointError(
        f"{source} is no CAV-MAE: expected names like modality_a and mask_token or mlp_head.1.weight, "
        f"got {shortly(tensors) or 'none'}{hint}"
    )


def _empty(weights: Weights, normalisation: Normalisation | None = None) -> CAVMAE | CAVMAEFT:
    """The model without values."""
    normal = normalisation or Normalisation()
    with torch.device("meta"):
        if weights.kind == "pretrain":
            return CAVMAE(weights.model, normal)
        kind = CAVMAEFT if weights.kind == "finetune" else CAVMAEFTAudio
        return kind(weights.model, weights.classes, normal)


def _sizes(
    tensors: Mapping[str, Tensor], kind: Kind, source: str, heads: int | None, decoder_heads: int | None
) -> ModelConfig:
    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        return _shape(tensors, name, dimensions, source)

    width, hidden = shape("modality_a", 3)[-1], shape("blocks_u.0.mlp.fc1.weight", 2)[0]
    patch = shape("patch_embed_a.proj.weight", 4)[-1]
    if MEL_BINS % patch:
        raise CheckpointError(f"{source}: patches of {patch} mel bins do not divide the {MEL_BINS} of every model")
    sizes: dict[str, float | int] = {
        "embed_dim": width,
        "num_heads": heads or _heads(width, "embed_dim", "num_heads", 64, source),
        "modality_specific_depth": _depth(tensors, "blocks_a."),
        "shared_depth": _depth(tensors, "blocks_u."),
        "mlp_ratio": _ratio(width, hidden),
        "patch_size": patch,
        "mel_bins": MEL_BINS,
        "audio_frames": shape("pos_embed_a", 3)[1] * patch // (MEL_BINS // patch),
    }
    if kind != "finetune-audio":
        sizes["image_size"] = isqrt(shape("pos_embed_v", 3)[1]) * patch
    if kind == "pretrain":
        decoder = shape("mask_token", 3)[-1]
        sizes |= {
            "decoder_embed_dim": decoder,
            "decoder_num_heads": decoder_heads or _heads(decoder, "decoder_embed_dim", "decoder_num_heads", 32, source),
            "decoder_depth": _depth(tensors, "decoder_blocks."),
        }
    try:
        return ModelConfig.model_validate(sizes)
    except ValueError as error:
        raise CheckpointError(f"{source} has sizes that no model has: {first_problem(error)}") from error


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{source} is no CAV-MAE: {name} is missing")
    if tensors[name].ndim != dimensions:
        raise CheckpointError(
            f"{source}: {name} must have {dimensions} dimensions, got shape {tuple(tensors[name].shape)}"
        )
    return tuple(tensors[name].shape)


def _depth(tensors: Mapping[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(blocks)})


def _ratio(width: int, hidden: int) -> float:
    """The ratio that a Block turns into this hidden width: division alone may fall one short."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _heads(width: int, width_key: str, heads_key: str, per_head: int, source: str) -> int:
    for preset in PRESETS.values():
        if preset[width_key] == width:
            return int(preset[heads_key])
    if width % per_head:
        raise CheckpointError(
            f"{source} is {width} wide, which no shape splits into heads; say how many with --heads and --decoder-heads"
        )
    return width // per_head

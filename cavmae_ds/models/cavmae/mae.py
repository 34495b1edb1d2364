"""An ImageNet MAE (image encoder and decoder) becomes a CAV-MAE (spec/cav-mae.md 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cavmae_ds.config.sections.init import AudioHead
from cavmae_ds.errors import CheckpointError
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.pth import read_pth
from cavmae_ds.models.common.weights import bare_names, differences


def read_mae(path: Path) -> dict[str, Tensor]:
    """The tensors of an MAE training checkpoint: under the key `model`, or bare. Raises CheckpointError."""
    content = read_pth(path)
    return bare_names(content["model"] if isinstance(content.get("model"), dict) else content, str(path))


def adapt_mae(
    state: Mapping[str, Tensor], model: ModelConfig, audio_head: AudioHead = "first_rows", source: str = "the MAE"
) -> dict[str, Tensor]:
    """All entries of a CAVMAE (647 at base size) from those of an MAE with its decoder, any size of both.

    The last shared_depth blocks are shared, those before stand in both towers. What an MAE has no counterpart of
    (modality tokens, audio's positions, modality norms of towers and decoder) starts as in a fresh model, drawn from
    torch's seed. Raises CheckpointError for an MAE of another size, without its decoder, or with more in it.
    """
    adapted: dict[str, Tensor] = {}
    strangers = []
    for name, tensor in state.items():
        entries = list(_entries(name, tensor, model.modality_specific_depth, audio_head))
        adapted.update(entries)
        if not entries and name != "cls_token":
            strangers.append(name)
    fresh = CAVMAE(model).state_dict()
    lacking = [name for name in fresh if name not in adapted and not _starts_fresh(name)]
    strangers += [name for name in adapted if name not in fresh]
    if lacking or strangers:
        hint = "" if "mask_token" in state else "; it must come with its decoder"
        raise CheckpointError(
            f"{source} is no MAE of {model.modality_specific_depth + model.shared_depth} + {model.decoder_depth} "
            f"blocks: {differences(lacking, strangers)}{hint}"
        )
    for name, tensor in adapted.items():
        if tensor.shape != fresh[name].shape:
            raise CheckpointError(
                f"{source} is of another size than section model says: {name} would be of shape {tuple(tensor.shape)}, "
                f"needed is {tuple(fresh[name].shape)}"
            )
    return {name: adapted[name].float() if name in adapted else value for name, value in fresh.items()}


def _entries(name: str, tensor: Tensor, towers: int, audio_head: AudioHead) -> Iterator[tuple[str, Tensor]]:
    """What one of MAE's tensors becomes: official names and values. Nothing for a name that MAE has not."""
    first, _, rest = name.partition(".")
    match first:
        case "blocks":
            yield from _block_entries(rest, tensor, towers)
        case "norm":
            for norm in ("norm", "norm_a", "norm_v"):
                yield f"{norm}.{rest}", tensor
        case "patch_embed":
            yield f"patch_embed_v.{rest}", tensor
            yield f"patch_embed_a.{rest}", tensor.sum(1, keepdim=True) if tensor.ndim == 4 else tensor
        case "pos_embed" | "decoder_pos_embed" if tensor.ndim == 3:
            yield f"{name}_v", tensor[:, 1:]  # without the class token's row
        case "decoder_pred":
            yield f"decoder_pred_v.{rest}", tensor
            yield f"decoder_pred_a.{rest}", _audio_rows(tensor, audio_head)
        case "mask_token" | "decoder_embed" | "decoder_blocks" | "decoder_norm":
            yield name, tensor


def _block_entries(rest: str, tensor: Tensor, towers: int) -> Iterator[tuple[str, Tensor]]:
    number, _, part = rest.partition(".")  # 11.norm1.weight -> 11, norm1.weight
    if not number.isdecimal():
        return
    place = int(number) - towers
    if place < 0:
        yield f"blocks_a.{number}.{part}", tensor
        yield f"blocks_v.{number}.{part}", tensor
        return
    yield f"blocks_u.{place}.{part}", tensor
    norm, _, kind = part.partition(".")
    if norm in ("norm1", "norm2"):
        for letter in ("a", "v"):
            yield f"blocks_u.{place}.{norm}_{letter}.{kind}", tensor


def _audio_rows(tensor: Tensor, audio_head: AudioHead) -> Tensor:
    """Rows of pixels, red green blue each [3 P, ...], to rows of log-mel values [P, ...]."""
    values = len(tensor) // 3
    if audio_head == "first_rows":
        return tensor[:values]
    return torch.stack([tensor[colour::3] for colour in range(3)]).mean(0)


def _starts_fresh(name: str) -> bool:
    first, *rest = name.split(".")
    if first in ("modality_a", "modality_v", "decoder_modality_a", "decoder_modality_v"):
        return True
    if first in ("pos_embed_a", "decoder_pos_embed_a"):
        return True
    norm = rest[1] if len(rest) > 1 else ""
    return first != "blocks_u" and norm.startswith("norm") and norm.endswith(("_a", "_v"))

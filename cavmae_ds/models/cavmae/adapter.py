"""Weights of CAV-MAE for everything that knows no family: models.family.StateDictAdapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cavmae_ds.config.sections.init import InitConfig, Positions
from cavmae_ds.models.cavmae.classifier import CAVMAEFT
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.encoder import Encoder, is_reached
from cavmae_ds.models.cavmae.mae import adapt_mae, read_mae
from cavmae_ds.models.cavmae.model import CAVMAE, in_decoder
from cavmae_ds.models.cavmae.state_dict import build, in_official_order, kind_of, recognise, with_audio_frames
from cavmae_ds.models.common.weights import Weights

ENCODER_SIZES = "embed_dim", "num_heads", "modality_specific_depth", "shared_depth", "mlp_ratio", "patch_size"
DECODER_SIZES = "decoder_embed_dim", "decoder_num_heads", "decoder_depth"


class CAVMAEStateDict:
    """See StateDictAdapter."""

    def recognises(self, names: Collection[str]) -> bool:
        """By the token that every CAV-MAE has."""
        return "modality_a" in names

    def recognise(
        self, tensors: Mapping[str, Tensor], source: str, heads: int | None, decoder_heads: int | None
    ) -> Weights:
        """See state_dict.recognise."""
        return recognise(tensors, source, heads, decoder_heads)

    def kind_of(self, tensors: Mapping[str, Tensor], source: str) -> tuple[str, int]:
        """See state_dict.kind_of."""
        return kind_of(tensors, source)

    def in_order(self, weights: Weights) -> Weights:
        """See state_dict.in_official_order."""
        return in_official_order(weights)

    def build(self, weights: Weights, device: torch.device | None) -> CAVMAE | CAVMAEFT:
        """See state_dict.build."""
        return build(weights, device)

    def heads_of(self, model: ModelConfig) -> tuple[int, int]:
        """Of section `model`."""
        return model.num_heads, model.decoder_num_heads

    def from_mae(self, path: Path, model: ModelConfig, init: InitConfig) -> Weights:
        """See mae.adapt_mae."""
        state = adapt_mae(read_mae(path), model, init.audio_head, str(path))
        return recognise(state, str(path), model.num_heads, model.decoder_num_heads)

    def other_sizes(self, weights: Weights, model: ModelConfig, module: Encoder) -> dict[str, Any]:
        """Sizes of the decoder count where both have one; another length of log-mels is refitted if it is alone."""
        keys = [*ENCODER_SIZES]
        if weights.kind == "pretrain" and isinstance(module, CAVMAE):
            keys += DECODER_SIZES
        if "v" in module.modalities and weights.kind != "finetune-audio":
            keys.append("image_size")
        made, wanted = weights.model.model_dump(), model.model_dump()
        if not weights.heads_known:  # no shape tells them, and the ratio only roughly
            keys = [key for key in keys if key not in ("num_heads", "decoder_num_heads", "mlp_ratio")]
        differing = [key for key in keys if made[key] != wanted[key]]
        if differing and made["audio_frames"] != wanted["audio_frames"]:
            differing.append("audio_frames")
        return {key: made[key] for key in differing}

    def with_audio_frames(self, weights: Weights, frames: int, positions: Positions) -> Weights:
        """See state_dict.with_audio_frames."""
        return with_audio_frames(weights, frames, positions)

    def may_start(
        self, weights: Weights, module: Encoder, missing: Collection[str], unexpected: Collection[str]
    ) -> bool:
        """A classifier lacks its head and has no use for the decoder, nor for frames if it does not see."""

        def is_decoders_or_blind(name: str) -> bool:
            blind = "v" not in module.modalities and name.split(".")[0].endswith("_v")
            return in_decoder(name) or blind

        new_head = weights.kind == "pretrain" and all(name.startswith("mlp_head.") for name in missing)
        return bool(missing) and new_head and all(map(is_decoders_or_blind, unexpected))

    def reads_features(self, name: str) -> bool:
        """The towers and the two pooled passes."""
        return not in_decoder(name) and not name.startswith("mlp_head") and is_reached(name, ("a", "v"), ("a", "v"))

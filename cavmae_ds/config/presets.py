"""Named sizes and an optimizer's usual constants: what a run file may say in one word. Its other keys override them.

Every size keeps CAV-MAE's patch of 16, huge and giant too, though their image-only originals use 14: 14 divides neither
128 mel bins nor 1024 frames. One block in the whole depth is shared by the modalities, as in CAV-MAE base.
"""

from __future__ import annotations

from typing import Any

_MAE_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
"""MAE's, for every size of encoder (He et al., arXiv 2111.06377; the heads from its code)."""


def _encoder(width: int, depth: int, heads: int) -> dict[str, int]:
    return {"embed_dim": width, "num_heads": heads, "modality_specific_depth": depth - 1, "shared_depth": 1}


PRESETS: dict[str, dict[str, int | float]] = {
    # DeiT-Ti's encoder (Touvron et al., arXiv 2012.12877). Nobody published a decoder for it: MAE's would be wider than
    # the encoder, so this one is as wide, and half as deep.
    "tiny": {**_encoder(192, 12, 3), "decoder_embed_dim": 192, "decoder_depth": 4, "decoder_num_heads": 6},
    # ViT-B, L and H (Dosovitskiy et al., arXiv 2010.11929).
    "base": {**_encoder(768, 12, 12), **_MAE_DECODER},
    "large": {**_encoder(1024, 24, 16), **_MAE_DECODER},
    "huge": {**_encoder(1280, 32, 16), **_MAE_DECODER},
    # ViT-g: MLPs of 6144 (Zhai et al., arXiv 2106.04560).
    "giant": {**_encoder(1408, 40, 16), **_MAE_DECODER, "mlp_ratio": 6144 / 1408},
}
"""Name -> keys of the `model` section."""

OPTIMIZER_CONSTANTS: dict[str, dict[str, float]] = {
    "lamb": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6},  # You et al., arXiv 1904.00962
    "lars": {"beta1": 0.9},  # You et al., arXiv 1708.03888
    "lion": {"beta1": 0.9, "beta2": 0.99},  # Chen et al., arXiv 2302.06675
}
"""Optimizer -> keys of the `optim` section that differ from their defaults, which are Adam's in CAV-MAE."""


def filled_in(values: Any, table: dict[str, dict[str, Any]], key: str) -> Any:
    """A section's plain values, completed by what the table says for values[key]; explicit values win.

    An unknown name is left for the section's own check to refuse.
    """
    if not isinstance(values, dict) or not isinstance(values.get(key), str):
        return values
    return {**table.get(values[key], {}), **values}

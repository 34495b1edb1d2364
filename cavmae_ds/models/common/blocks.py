"""The transformer block of CAV-MAE: one attention and one MLP, with norms to choose from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Modality = Literal["a", "v"]
"""Whose norms a block uses: a is audio, v is image (the official names' letters)."""


class Block(nn.Module):
    """Pre-norm residual block, x + attention(norm(x)) then x + mlp(norm(x)) (spec/cav-mae.md 1.3).

    Owns the official state-dict names: norm1, norm1_a, norm1_v, attn, norm2, norm2_a, norm2_v, mlp. Attention
    and MLP are common to all; the modality picks the norms.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)  # eps 1e-5, though the ImageNet weights were trained with 1e-6
        self.norm1_a = nn.LayerNorm(width)
        self.norm1_v = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width)
        self.norm2_a = nn.LayerNorm(width)
        self.norm2_v = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, modality: Modality | None = None) -> Tensor:
        """Tokens [B, N, D] to tokens [B, N, D], with the plain norms or those of one modality."""
        if modality is None:
            norm1, norm2 = self.norm1, self.norm2
        elif modality == "a":
            norm1, norm2 = self.norm1_a, self.norm2_a
        elif modality == "v":
            norm1, norm2 = self.norm1_v, self.norm2_v
        else:
            raise ValueError(f"modality must be None, 'a' or 'v', got {modality!r}")
        x = x + self.attn(norm1(x))
        return x + self.mlp(norm2(x))


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, modality: Modality | None = None, recompute: bool = False
) -> Tensor:
    """Send tokens [B, N, D] through the blocks, one after the other.

    recompute keeps only each block's input and runs it again in backward. Nothing in a block is random, so it gives
    the same again.
    """
    for block in blocks:
        if recompute:
            x = checkpoint(block, x, modality, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, modality)
    return x

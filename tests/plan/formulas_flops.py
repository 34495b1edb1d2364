"""By hand, FLOPs of CAV-MAE, a multiply-add as 2; norms, softmax and GELU do not count (spec/scale.md 2).

The base model takes 78.07 GFLOP forward and 233.8 GFLOP forward and backward.
"""

from __future__ import annotations

from typing import NamedTuple

from cavmae_ds.models.cavmae.classifier import ROUTES
from cavmae_ds.models.cavmae.config import ClassifierConfig, MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, image_grid
from cavmae_ds.models.common.masking import kept_patches


class Stack(NamedTuple):
    """Equal blocks that one stream of tokens runs through."""

    depth: int
    tokens: int
    width: int
    heads: int


class Stacks(NamedTuple):
    """Every stack of blocks that one clip runs through; the shared blocks run once for each of three streams."""

    audio_tower: Stack
    image_tower: Stack
    joint: Stack
    audio_shared: Stack
    image_shared: Stack
    decoder: Stack


def forward_flops(model: ModelConfig, mask: MaskConfig) -> int:
    """FLOPs of one forward pass of one clip, all parts on."""
    blocks = sum(_stack_flops(stack, model.mlp_ratio) for stack in block_stacks(model, mask))
    return blocks + _patch_embed_flops(model) + _head_flops(model, mask)


def training_flops(model: ModelConfig, mask: MaskConfig) -> int:
    """FLOPs of forward and backward of one clip: what MFU is reported against.

    Backward costs twice the forward, less the gradient of the inputs, which nobody asks for.
    """
    return 3 * forward_flops(model, mask) - _patch_embed_flops(model)


def features_flops(model: ModelConfig, mask: MaskConfig) -> int:
    """FLOPs of the forward pass that gives the pooled features alone: towers and two shared passes, no decoder.

    It is what a two-pass step runs a second time.
    """
    stacks = block_stacks(model, mask)
    feature_stacks = (stacks.audio_tower, stacks.image_tower, stacks.audio_shared, stacks.image_shared)
    return sum(_stack_flops(stack, model.mlp_ratio) for stack in feature_stacks) + _patch_embed_flops(model)


def encoder_flops(model: ModelConfig, mask: MaskConfig) -> int:
    """FLOPs of the forward pass of all encoder blocks, shared ones three times: what checkpoint_towers runs again."""
    stacks = block_stacks(model, mask)
    return sum(_stack_flops(stack, model.mlp_ratio) for stack in stacks if stack is not stacks.decoder)


def classifier_flops(model: ModelConfig, classifier: ClassifierConfig) -> int:
    """FLOPs of forward and backward of one clip when a classifier is finetuned: every patch of what its mode sees.

    A linear probe's backward stops at the head and counts as nothing.
    """
    towers, passes = ROUTES[classifier.mode]
    tokens = {"a": model.audio_patches, "v": model.image_patches}
    together = sum(tokens[letter] for letter in towers)
    stacks = [
        Stack(model.modality_specific_depth, tokens[letter], model.embed_dim, model.num_heads) for letter in towers
    ]
    stacks += [Stack(model.shared_depth, together, model.embed_dim, model.num_heads)] * len(passes)
    embed = sum(
        2 * grid.patches * grid.values * model.embed_dim
        for letter, grid in zip("av", (audio_grid(model), image_grid(model)), strict=True)
        if letter in towers
    )
    forward = sum(_stack_flops(stack, model.mlp_ratio) for stack in stacks) + embed
    return forward if classifier.freeze_base else 3 * forward - embed


def block_stacks(model: ModelConfig, mask: MaskConfig) -> Stacks:
    """The stacks of one clip when the shares of mask are hidden."""
    audio = kept_patches(model.audio_patches, mask.audio_ratio)
    image = kept_patches(model.image_patches, mask.image_ratio)

    def encoder(depth: int, tokens: int) -> Stack:
        return Stack(depth, tokens, model.embed_dim, model.num_heads)

    every = model.audio_patches + model.image_patches
    return Stacks(
        audio_tower=encoder(model.modality_specific_depth, audio),
        image_tower=encoder(model.modality_specific_depth, image),
        joint=encoder(model.shared_depth, audio + image),
        audio_shared=encoder(model.shared_depth, audio),
        image_shared=encoder(model.shared_depth, image),
        decoder=Stack(model.decoder_depth, every, model.decoder_embed_dim, model.decoder_num_heads),
    )


def _stack_flops(stack: Stack, mlp_ratio: float) -> int:
    hidden = int(stack.width * mlp_ratio)
    linear = 2 * stack.tokens * stack.width * (4 * stack.width + 2 * hidden)  # qkv, projection, MLP
    attention = 2 * 2 * stack.tokens**2 * stack.width  # scores, weighted sum of values
    return stack.depth * (linear + attention)


def _patch_embed_flops(model: ModelConfig) -> int:
    """All patches, as the official model embeds them; ours embeds the visible ones only."""
    grids = audio_grid(model), image_grid(model)
    return sum(2 * grid.patches * grid.values * model.embed_dim for grid in grids)


def _head_flops(model: ModelConfig, mask: MaskConfig) -> int:
    audio = kept_patches(model.audio_patches, mask.audio_ratio)
    image = kept_patches(model.image_patches, mask.image_ratio)
    embed = 2 * (audio + image) * model.embed_dim * model.decoder_embed_dim
    grids = audio_grid(model), image_grid(model)
    return embed + sum(2 * grid.patches * grid.values * model.decoder_embed_dim for grid in grids)

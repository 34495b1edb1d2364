"""Models small enough to write and read many times, of every kind, with values of their own in every entry."""

from __future__ import annotations

import torch

from cavmae_ds.config import ModelConfig
from cavmae_ds.exchange.weights import Kind
from cavmae_ds.model.cavmae import CAVMAE
from cavmae_ds.model.classifier import CAVMAEFT, CAVMAEFTAudio

SIZES = ModelConfig(
    embed_dim=48,
    num_heads=4,
    modality_specific_depth=2,
    shared_depth=1,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=4,
    audio_frames=96,
    image_size=64,
)
HEADS = {"heads": 4, "decoder_heads": 4}


def small_model(kind: Kind, seed: int = 0, sizes: ModelConfig = SIZES) -> CAVMAE | CAVMAEFT:
    """Fresh weights, but for norms and biases, which would all be alike."""
    torch.manual_seed(seed)
    if kind == "pretrain":
        model: CAVMAE | CAVMAEFT = CAVMAE(sizes)
    else:
        model = (CAVMAEFT if kind == "finetune" else CAVMAEFTAudio)(sizes, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def clips(count: int = 2, sizes: ModelConfig = SIZES) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw log-mels and frames."""
    draw = torch.Generator().manual_seed(7)
    audio = torch.randn(count, sizes.audio_frames, 128, generator=draw) * 4 - 5
    return audio, torch.randint(0, 256, (count, 3, sizes.image_size, sizes.image_size), generator=draw).byte()


def small_mae(sizes: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """What Meta's pretraining script saves of a model with its decoder: every value its own."""
    patch_values, patches = 3 * sizes.patch_size**2, sizes.image_patches
    width, narrow = sizes.embed_dim, sizes.decoder_embed_dim
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "mask_token": (1, 1, narrow),
        "decoder_pos_embed": (1, patches + 1, narrow),
        "patch_embed.proj.weight": (width, 3, sizes.patch_size, sizes.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for blocks, depth, wide in (
        ("blocks", sizes.modality_specific_depth + sizes.shared_depth, width),
        ("decoder_blocks", sizes.decoder_depth, narrow),
    ):
        inside = {
            "norm1": (wide,), "attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide),
            "norm2": (wide,), "mlp.fc1": (4 * wide, wide), "mlp.fc2": (wide, 4 * wide),
        }  # fmt: skip
        for i in range(depth):
            for name, shape in inside.items():
                shapes |= {f"{blocks}.{i}.{name}.weight": shape, f"{blocks}.{i}.{name}.bias": shape[:1]}
    for name, shape in {
        "norm": (width,), "decoder_embed": (narrow, width), "decoder_norm": (narrow,),
        "decoder_pred": (patch_values, narrow),
    }.items():  # fmt: skip
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}

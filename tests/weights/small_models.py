"""Models small enough to write and read many times, of every kind, with values of their own in every entry."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file

from cavmae_ds.checkpoint.layout import MASTER, Piece, rank_file
from cavmae_ds.checkpoint.manifest import MANIFEST, FileRecord, Manifest, ParameterRecord, manifest_bytes
from cavmae_ds.data.transforms.normalise import AUDIO_MEAN, AUDIO_STD
from cavmae_ds.models.cavmae.classifier import CAVMAEFT, CAVMAEFTAudio
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.cavmae.state_dict import Kind

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


def run_folder(
    folder: Path,
    model: CAVMAE | CAVMAEFT,
    sizes: ModelConfig = SIZES,
    audio_mean: float = AUDIO_MEAN,
    audio_std: float = AUDIO_STD,
) -> Path:
    """What a run leaves behind, as far as its weights are concerned: one checkpoint written by one rank."""
    checkpoint = folder / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    state = model.state_dict()
    file = rank_file(0, 1)
    save_file({Piece(MASTER, name, 0, x).key: x.flatten() for name, x in state.items()}, checkpoint / file)
    content = (checkpoint / file).read_bytes()
    manifest = Manifest(
        step=10,
        clips_seen=80,
        ranks=1,
        zero_stage=0,
        states=[MASTER],
        parameters={n: ParameterRecord(shape=list(x.shape), dtype="float32", trained=True) for n, x in state.items()},
        config={"model": sizes.model_dump(mode="json"), "data": {"audio_mean": audio_mean, "audio_std": audio_std}},
        files={file: FileRecord(bytes=len(content), sha256=sha256(content).hexdigest())},
    )
    (checkpoint / MANIFEST).write_bytes(manifest_bytes(manifest))
    return folder


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

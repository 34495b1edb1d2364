"""How much faster or slower than the learning rate each parameter of a classifier is trained."""

from __future__ import annotations

from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.tasks.finetune.config import ClassifierConfig


def classifier_rate(name: str, cfg: ClassifierConfig, model: ModelConfig) -> float:
    """The head at head_lr_ratio; the encoder at layer_decay ** (layers between it and the head).

    Layers are the embeddings, each block of the towers (both towers side by side), each shared block, the final norms;
    the last ones are at 1. Layer-wise decay: Clark et al., arXiv 2003.10555; MAE's finetuning uses it.
    """
    first, *rest = name.split(".")
    if first == "mlp_head":
        return cfg.head_lr_ratio
    last = model.modality_specific_depth + model.shared_depth + 1
    match first:
        case "blocks_a" | "blocks_v":
            layer = 1 + int(rest[0])
        case "blocks_u":
            layer = 1 + model.modality_specific_depth + int(rest[0])
        case "norm" | "norm_a" | "norm_v":
            layer = last
        case _:
            layer = 0
    return cfg.layer_decay ** (last - layer)

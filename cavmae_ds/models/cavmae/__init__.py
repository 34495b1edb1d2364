"""CAV-MAE: contrastive audio-visual masked autoencoder (Gong et al., arXiv 2210.07839)."""

from __future__ import annotations

from typing import Any

from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.models.cavmae.config import ClassifierConfig, MaskConfig, ModelConfig
from cavmae_ds.models.family import ModelFamily, StateDictAdapter


def inputs(model: ModelConfig, kind: str = "pretrain") -> InputSpec:
    """The whole log-mel and one frame, which the classifier of sound alone does not read."""
    frames = 0 if kind == "finetune-audio" else 1
    return InputSpec(
        log_mel_frames=model.audio_frames, mel_bins=model.mel_bins, frames=frames, frame_size=model.image_size
    )


def build_pretraining(model: ModelConfig, *normalisation: Any) -> Any:
    """The masked autoencoder."""
    from cavmae_ds.models.cavmae.model import CAVMAE

    return CAVMAE(model, *normalisation)


def build_classifier(model: ModelConfig, classifier: ClassifierConfig, classes: int, *normalisation: Any) -> Any:
    """The classifier of classifier.model."""
    from cavmae_ds.models.cavmae.classifier import CLASSIFIERS

    return CLASSIFIERS[classifier.model](model, classes, *normalisation)


def targets(model: ModelConfig) -> tuple[str, ...]:
    """Both modalities."""
    return "audio", "image"


def draw_masks(*arguments: Any) -> Any:
    """See masking.draw_plans."""
    from cavmae_ds.models.cavmae.masking import draw_plans

    return draw_plans(*arguments)


def state_dict_adapter() -> StateDictAdapter:
    """See adapter.py."""
    from cavmae_ds.models.cavmae.adapter import CAVMAEStateDict

    return CAVMAEStateDict()


def depth(model: ModelConfig, name: str) -> int:
    """Embeddings, each block of the towers (both towers side by side), each shared block, the final norms."""
    first, *rest = name.split(".")
    match first:
        case "blocks_a" | "blocks_v":
            return 1 + int(rest[0])
        case "blocks_u":
            return 1 + model.modality_specific_depth + int(rest[0])
        case "norm" | "norm_a" | "norm_v":
            return last_depth(model)
    return 0


def last_depth(model: ModelConfig) -> int:
    """Of the final norms."""
    return model.modality_specific_depth + model.shared_depth + 1


FAMILY = ModelFamily(
    name="cavmae",
    config=ModelConfig,
    sections={"pretrain": {"mask": (MaskConfig, MaskConfig())}, "finetune": {"classifier": (ClassifierConfig, ...)}},
    inputs=inputs,
    build={"pretrain": build_pretraining, "finetune": build_classifier},
    targets=targets,
    draw_masks=draw_masks,
    state_dict=state_dict_adapter,
    head="mlp_head.",
    depth=depth,
    last_depth=last_depth,
)

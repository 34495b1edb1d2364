"""What is trained: sizes and masks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.base import OnResume, Positive, Section, Share, filled_in, multiple
from cavmae_ds.config.sections.classifier import ClassifierSection
from cavmae_ds.config.sections.model import ModelSection

Mode = Literal["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly"]
"""What the classifier is given. The word after "missing" is what is there: for testing a model that was finetuned
multimodally (spec/cav-mae.md 1.10)."""

ClassifierModel = Literal["audio-visual", "audio"]
"""The official CAVMAEFT, or CAVMAEFTAudio, which has no visual parameters (spec/cav-mae.md 1.11)."""

_MAE_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
"""MAE's, for every size of encoder (He et al., arXiv 2111.06377; the heads from its code)."""


def _encoder(width: int, depth: int, heads: int) -> dict[str, int]:
    return {"embed_dim": width, "num_heads": heads, "modality_specific_depth": depth - 1, "shared_depth": 1}


# Every size keeps CAV-MAE's patch of 16, huge and giant too, though their image-only originals use 14: 14 divides
# neither 128 mel bins nor 1024 frames. One block in the whole depth is shared by the modalities, as in CAV-MAE base.
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


class ModelConfig(ModelSection):
    """Sizes of CAV-MAE; names and defaults of the official constructor (spec/cav-mae.md 1.1)."""

    family: Literal["cavmae"] = "cavmae"

    preset: Annotated[Literal["tiny", "base", "large", "huge", "giant"] | None, OnResume.FREE] = None
    """Published sizes by name (PRESETS above); keys given beside it override it."""
    embed_dim: Positive = 768
    """Width of the encoder."""
    num_heads: Positive = 12
    """Attention heads of the encoder."""
    modality_specific_depth: Annotated[int, Field(ge=0)] = 11
    """Blocks in each of the two towers (audio, image)."""
    shared_depth: Positive = 1
    """Blocks after the towers, shared by both modalities."""
    decoder_embed_dim: Positive = 512
    """Width of the decoder."""
    decoder_depth: Positive = 8
    """Blocks of the decoder."""
    decoder_num_heads: Positive = 16
    """Attention heads of the decoder."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of each MLP over the block's width."""
    patch_size: Positive = 16
    """Side of a square patch: pixels, or mel bins and frames."""
    image_size: Positive = 224
    """Side of the square image, pixels."""
    audio_frames: Positive = 1024
    """Length of the log-mel, frames of 10 ms."""
    mel_bins: Positive = 128
    """Height of the log-mel, mel bins."""
    trainable_positions: bool = False
    """Train the position tables instead of keeping them at sine-cosine."""
    decoder_chunk: Annotated[int, Field(ge=0), OnResume.FREE] = 0
    """Clips that the decoder takes at a time, forward and backward at once, the same mathematics in less memory; 0 is
    the whole micro-batch."""
    checkpoint_towers: Annotated[bool, OnResume.FREE] = False
    """Keep only the inputs of the encoder's blocks and compute the rest again in backward: less memory, more time."""

    @model_validator(mode="before")
    @classmethod
    def _preset_sizes(cls, values: Any) -> Any:
        return filled_in(values, PRESETS, "preset")

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        for name in ("audio_frames", "mel_bins", "image_size"):
            multiple(name, getattr(self, name), "patch_size", self.patch_size)
        # A position table spends a quarter of the width on each of sin and cos of column and row.
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            multiple(width, getattr(self, width), heads, getattr(self, heads))
            if getattr(self, width) % 4:
                raise ValueError(f"{width} must be a multiple of 4, got {getattr(self, width)}")
        return self

    def check_task(self, task: str) -> None:
        """Only pretraining has a decoder."""
        if task == "finetune" and self.decoder_chunk:
            raise ValueError(
                f"model.decoder_chunk is {self.decoder_chunk}, but a classifier has no decoder; leave it out"
            )

    @property
    def clips_at_once(self) -> int:
        """Of the decoder."""
        return self.decoder_chunk

    def memory_savers(self, task: str, clips: int) -> list[tuple[str, dict[str, Any]]]:
        """The decoder in chunks, then the encoder's blocks recomputed as well."""
        chunks = {"model.decoder_chunk": clips} if task == "pretrain" else {}
        names = [f"chunk {clips}"] if clips else []
        return [
            (" + ".join(names) or "plain", {**chunks, "model.checkpoint_towers": False}),
            (" + ".join([*names, "checkpoint"]), {**chunks, "model.checkpoint_towers": True}),
        ]

    @property
    def audio_patches(self) -> int:
        """Patches of one clip's log-mel."""
        return (self.mel_bins // self.patch_size) * (self.audio_frames // self.patch_size)

    @property
    def image_patches(self) -> int:
        """Patches of one frame."""
        return (self.image_size // self.patch_size) ** 2


class MaskConfig(Section):
    """Which share of the patches the encoder never sees (spec/cav-mae.md 1.7)."""

    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    audio_ratio: Share = 0.75
    """Share of audio patches hidden."""
    image_ratio: Share = 0.75
    """Share of image patches hidden."""
    audio_mode: Literal["unstructured", "time", "freq", "tf"] = "unstructured"
    """Hide patches at random, whole time columns, whole frequency rows, or some of both."""


class ClassifierConfig(ClassifierSection):
    """CAVMAEFT or CAVMAEFTAudio."""

    model: Annotated[ClassifierModel, OnResume.FIXED] = "audio-visual"
    """Which parameters there are: audio has those that hear, for modes without frames."""
    mode: Mode = "multimodal"
    """Both modalities, or one of them."""

    @property
    def kind(self) -> str:
        """Of the official weights."""
        return "finetune-audio" if self.model == "audio" else "finetune"

    @model_validator(mode="after")
    def _model_has_what_the_mode_needs(self) -> ClassifierConfig:
        if self.model == "audio" and self.mode not in ("audioonly", "missingaudioonly"):
            raise ValueError(
                f"mode must be audioonly or missingaudioonly for model audio, which sees nothing, got {self.mode}"
            )
        return self

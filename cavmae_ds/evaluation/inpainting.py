"""What a pretrained model makes of clips that it sees and hears only in part, or not at all (spec/cav-mae.md 5.3).

B clips; L patches, H of them hidden.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.data.format.clips import Batch, collate
from cavmae_ds.data.format.spread import spread
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.evaluation.inference import Judged
from cavmae_ds.kernels.masked_mse import masked_mse
from cavmae_ds.models import family_of
from cavmae_ds.models.common.masking import MaskPlan, Plans
from cavmae_ds.models.common.output import PretrainOutput, Target
from cavmae_ds.tasks import validate_run

Mode = Literal["unstructured", "time", "freq", "tf"]


class Settings(NamedTuple):
    """What is hidden, and what the model predicts of it."""

    audio_ratio: float = 0.75
    """Share of the audio patches that is hidden: 0 is nothing, 1 everything."""
    image_ratio: float = 0.75
    audio_mode: Mode = "unstructured"
    seed: int = 0
    """Decides the masks, with the clip's place in the data."""
    normalised_pixels: bool = False
    """The model predicts each patch up to its mean and variance (loss.normalise_pixels)."""


ClipLosses = dict[str, float | None]
"""Target -> mean squared error over the hidden patches of one clip; None where nothing is hidden."""


def settings_of_run(judged: Judged) -> Settings:
    """Those that the model was trained with, where that is known, else those of the official demonstration.

    Raises ConfigError for a classifier and for a run that trained no decoder.
    """
    source = judged.loaded.source
    if judged.loaded.kind != "pretrain":
        raise ConfigError(f"the model in {source!r} is a classifier without a decoder: give a pretrained one")
    if not judged.run:
        return Settings()
    run: Any = validate_run(judged.run, "pretrain")
    if run.loss.mae_weight == 0:
        raise ConfigError(f"the run of {source!r} had loss.mae_weight=0: its decoder has learnt nothing to draw")
    chosen = {key: value for key, value in run.mask.model_dump().items() if key in Settings._fields}
    return Settings(**chosen, seed=run.train.seed, normalised_pixels=run.loss.normalise_pixels)


def check_ratios(audio_ratio: float, image_ratio: float) -> None:
    """Raises ConfigError unless both are shares, something is hidden and something is left."""
    for name, ratio in (("audio", audio_ratio), ("image", image_ratio)):
        if not 0 <= ratio <= 1:
            raise ConfigError(f"--{name}-ratio must lie between 0 (all is given) and 1 (all is hidden), got {ratio}")
    if audio_ratio == image_ratio and audio_ratio in (0, 1):
        raise ConfigError(f"--audio-ratio and --image-ratio must not both be {audio_ratio:g}: hide some, leave some")


def plans_for(settings: Settings, model: ModelSection, clip_index: Tensor) -> Plans:
    """The masks of the clips with these indices [B] int64: those of epoch 0 of a run with this seed.

    Other than in training, all of one modality may be hidden, or nothing. Raises ConfigError for a ratio in between
    that comes to that, and for a family without these two ratios.
    """
    ratios = settings.audio_ratio, settings.image_ratio
    some = [ratio if 0 < ratio < 1 else 0.75 for ratio in ratios]  # a stand-in: its plan is replaced below
    keys: dict[str, Any] = {"audio_ratio": some[0], "image_ratio": some[1]}
    if settings.audio_mode != "unstructured":
        keys["audio_mode"] = settings.audio_mode
    family = family_of(model.family)
    section, _ = family.sections["pretrain"]["mask"]
    if missing := sorted(keys.keys() - section.model_fields.keys()):
        raise ConfigError(f"models of family {family.name} have no mask.{missing[0]}, which inpainting hides by")
    drawn = family.draw_masks(model, section(**keys), settings.seed, 0, clip_index)
    return Plans(
        *(plan if 0 < ratio < 1 else _whole(plan, ratio == 1) for plan, ratio in zip(drawn, ratios, strict=True))
    )


def spread_clips(judged: Judged, clips: int) -> Batch:
    """So many clips from all over the data, or all if there are fewer; the same each time, their middle frames."""
    return collate([judged.clips[place] for place in spread(clips, len(judged.clips))])


@torch.inference_mode()
def inpaint(judged: Judged, batch: Batch, settings: Settings) -> PretrainOutput:
    """The clips, which of their patches were hidden, and what the model predicts for these."""
    audio, images = judged.front_end(batch)
    plans = plans_for(settings, judged.loaded.config, batch.clip_index.to(judged.front_end.device))
    output: PretrainOutput = judged.loaded.model(audio, images, plans, contrastive=False)
    return output


def clip_losses(judged: Judged, output: PretrainOutput, normalised: bool) -> list[ClipLosses]:
    """The reconstruction loss of each clip; the mean over clips is that of training (spec/cav-mae.md 1.8).

    Raises CheckpointError where one is no number.
    """
    losses = {target.name: _losses(target, normalised) for target in output.targets}
    if not all(math.isfinite(loss) for clips in losses.values() for loss in clips if loss is not None):
        raise CheckpointError(f"the outputs of {judged.loaded.source!r} are no numbers: its training went wrong")
    return [dict(zip(losses, clip, strict=True)) for clip in zip(*losses.values(), strict=True)]


def _losses(target: Target, normalised: bool) -> list[float | None]:
    prediction = target.prediction
    assert prediction is not None
    clips, hidden, _ = prediction.shape
    if hidden == 0:
        return [None] * clips
    pixels, grid, mean, std = target.source
    own = normalised if target.normalised is None else target.normalised
    rows = [slice(k, k + 1) for k in range(clips)]
    return [float(masked_mse(prediction[k], pixels[k], target.plan.hidden[k], grid, mean, std, own)) for k in rows]


def _whole(drawn: MaskPlan, hidden: bool) -> MaskPlan:
    """A plan that hides every patch, or none, in the order of the picture."""
    every = drawn.restore.sort(1).values  # 0, 1, 2, ... for each clip
    none = every[:, :0]
    return MaskPlan(none, every, every) if hidden else MaskPlan(every, none, every)

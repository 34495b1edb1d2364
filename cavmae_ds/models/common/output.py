"""What models hand to the tasks. B clips; H hidden patches of P values; L patches; D width of the encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from cavmae_ds.models.common.decoder_chunks import Reconstruction
from cavmae_ds.models.common.masking import MaskPlan
from cavmae_ds.models.common.patches import Picture


class Features(NamedTuple):
    """Tokens of everything that was seen, after the final norms; None for a modality that was not given."""

    audio: Tensor | None
    """[B, La, D]"""
    image: Tensor | None
    """[B, Lv, D]"""


class Target(NamedTuple):
    """One thing that a masked autoencoder rebuilds: a modality, or a part of one."""

    name: str
    """Its curve is loss/mae_NAME."""
    source: Picture
    """The inputs as given: the loss reads what was hidden from them."""
    plan: MaskPlan
    """Which patches were hidden."""
    prediction: Tensor | None = None
    """[B, H, P] the hidden patches rebuilt, in the order of plan.hidden (or all, if asked for); None: not asked for."""
    weight: float = 1.0
    """In the sum of all targets' losses."""
    normalised: bool | None = None
    """Whether patches are rebuilt up to their own mean and variance; None: as loss.normalise_pixels says."""


class PretrainOutput(NamedTuple):
    """What a model hands to the losses of pretraining."""

    audio_pooled: Tensor | None
    """[B, D] mean audio token, not normalised: one side of the contrastive pairs; None if not asked for."""
    image_pooled: Tensor | None
    """[B, D] mean image token, the other side."""
    targets: tuple[Target, ...]
    """What is rebuilt, in the order of ModelFamily.targets."""
    started: Any = None
    """What on_pooled made of the pooled features."""
    reconstruction: Reconstruction | None = None
    """The decoder's loss, where it ran in chunks; the predictions are then those of the first chunk, for the eye."""

    def target(self, name: str) -> Target:
        """The target of this name. Raises KeyError."""
        return {target.name: target for target in self.targets}[name]

    def of_clips(self, rows: slice) -> PretrainOutput:
        """Inputs and masks of some of the clips, without what was made of them."""
        return PretrainOutput(None, None, tuple(_of_clips(target, rows) for target in self.targets))

    def predicting(self, *predictions: Tensor | None) -> PretrainOutput:
        """The same with these predictions, in the order of the targets."""
        pairs = zip(self.targets, predictions, strict=True)
        return self._replace(targets=tuple(target._replace(prediction=prediction) for target, prediction in pairs))


def _of_clips(target: Target, rows: slice) -> Target:
    source = target.source._replace(pixels=target.source.pixels[rows])
    return target._replace(source=source, plan=MaskPlan(*(ids[rows] for ids in target.plan)), prediction=None)

"""What a masked autoencoder hands to the losses.

B clips; Ha, Hv hidden patches of audio and image; Pa, Pv values of a patch; D width of the encoder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from cavmae_ds.models.common.decoder_chunks import Reconstruction
from cavmae_ds.models.common.masking import MaskPlan, Plans
from cavmae_ds.models.common.patches import Picture


class PretrainOutput(NamedTuple):
    """What a model hands to the losses. Parts that were not asked for are None."""

    audio_pooled: Tensor | None
    """[B, D] mean audio token, not normalised: one side of the contrastive pairs."""
    image_pooled: Tensor | None
    """[B, D] mean image token, the other side."""
    audio_prediction: Tensor | None
    """[B, Ha, Pa] the hidden audio patches rebuilt, in the order of plans.audio.hidden (or all, if asked for)."""
    image_prediction: Tensor | None
    """[B, Hv, Pv] likewise."""
    audio: Picture
    """The log-mels as given: the losses read their targets from them."""
    image: Picture
    """The images as given."""
    plans: Plans
    """Which patches were hidden."""
    started: Any = None
    """What on_pooled made of the pooled features."""
    reconstruction: Reconstruction | None = None
    """The decoder's loss, where it ran in chunks; the predictions are then those of the first chunk, for the eye."""

    def of_clips(self, rows: slice) -> PretrainOutput:
        """Inputs and plans of some of the clips."""
        audio, image = (picture._replace(pixels=picture.pixels[rows]) for picture in (self.audio, self.image))
        plans = Plans(*(MaskPlan(*(ids[rows] for ids in plan)) for plan in self.plans))
        return PretrainOutput(None, None, None, None, audio, image, plans)

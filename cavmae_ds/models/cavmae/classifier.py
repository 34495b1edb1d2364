"""CAV-MAE for classification: no masks, no decoder, a head over the mean token (spec/cav-mae.md 1.10).

B clips, La + Lv tokens, D width, C classes.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from cavmae_ds.data.transforms.normalise import Normalisation
from cavmae_ds.models.cavmae.config import ClassifierModel, Mode, ModelConfig
from cavmae_ds.models.cavmae.encoder import ALREADY_NORMALISED, Encoder, is_reached
from cavmae_ds.models.common.blocks import Modality
from cavmae_ds.models.common.output import Features

MODES: tuple[Mode, ...] = get_args(Mode)


class Route(NamedTuple):
    """How a mode runs through the encoder."""

    towers: tuple[Modality, ...]
    """Modalities whose tokens are seen."""
    passes: tuple[Modality | None, ...]
    """Whose norms each pass through the shared blocks uses; the pooled passes are averaged."""


ROUTES: dict[Mode, Route] = {
    "multimodal": Route(("a", "v"), (None,)),
    "audioonly": Route(("a",), ("a",)),
    "videoonly": Route(("v",), ("v",)),
    "missingaudioonly": Route(("a",), (None, "a")),
    "missingvideoonly": Route(("v",), (None, "v")),
}


class CAVMAEFT(Encoder):
    """The official classifier: its parameter names, order and shapes, for any number of classes."""

    def __init__(
        self,
        cfg: ModelConfig,
        classes: int,
        normalisation: Normalisation = ALREADY_NORMALISED,
        trainable_positions: bool = True,
        modalities: tuple[Modality, ...] = ("a", "v"),
    ):
        """normalisation: what to do to the inputs' values; by default they come normalised.

        The position tables are trained, other than in pretraining: cfg.trainable_positions is not asked.
        """
        super().__init__(cfg, normalisation, trainable_positions, modalities)
        self.classes = classes
        self.mlp_head = nn.Sequential(nn.LayerNorm(cfg.embed_dim), nn.Linear(cfg.embed_dim, classes))
        self.draw_initial_weights()

    def forward(
        self, audio: Tensor | None, images: Tensor | None, mode: Mode | None = "multimodal"
    ) -> Tensor | Features:
        """Log-mels [B, frames, mel bins] and images [B, 3, H, W] (uint8 or float) to logits [B, C].

        What a mode does not need is not looked at and may be None. Without a mode the outcome is Features (see there).
        Raises ValueError for an unknown mode, a missing input, or inputs of another size than the config's.
        """
        if mode is None:
            return self._features(audio, images)
        towers, passes = self._route(mode)
        tokens = []
        if "a" in towers:
            tokens.append(self._tower("a", self._sound(_given(audio, "audio", mode))))
        if "v" in towers:
            tokens.append(self._tower("v", self._sight(_given(images, "images", mode))))
        x = torch.cat(tokens, dim=1)  # [B, La + Lv, D]
        pooled = [self._shared(x, letter).mean(1) for letter in passes]  # [B, D] each
        return self.mlp_head(torch.stack(pooled).mean(0))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that this classifier has the parameters for."""
        return tuple(mode for mode, route in ROUTES.items() if set(route.towers) <= set(self.modalities))

    def reads_frames(self, mode: Mode) -> bool:
        """Whether a mode looks at frames."""
        return "v" in ROUTES[mode].towers

    def unused_parameters(self, mode: Mode) -> set[str]:
        """Names of the parameters that no gradient reaches in a mode: freeze them (see is_reached)."""
        towers, passes = self._route(mode)
        return {name for name, _ in self.named_parameters() if not is_reached(name, towers, passes)}

    def _route(self, mode: Mode) -> Route:
        if mode not in self.modes:
            raise ValueError(f"the mode must be one of {', '.join(self.modes)}, got {mode!r}")
        return ROUTES[mode]


class CAVMAEFTAudio(CAVMAEFT):
    """The classifier without visual parameters (spec/cav-mae.md 1.11); modes: audioonly and missingaudioonly."""

    def __init__(
        self,
        cfg: ModelConfig,
        classes: int,
        normalisation: Normalisation = ALREADY_NORMALISED,
        trainable_positions: bool = True,
    ):
        """See CAVMAEFT."""
        super().__init__(cfg, classes, normalisation, trainable_positions, modalities=("a",))

    def forward(
        self, audio: Tensor | None, images: Tensor | None = None, mode: Mode | None = "audioonly"
    ) -> Tensor | Features:
        """See CAVMAEFT; images are not looked at."""
        return super().forward(audio, None, mode)


CLASSIFIERS: dict[ClassifierModel, type[CAVMAEFT]] = {"audio-visual": CAVMAEFT, "audio": CAVMAEFTAudio}
"""By classifier.model of a run file."""


def _given(pixels: Tensor | None, name: str, mode: str) -> Tensor:
    if pixels is None:
        raise ValueError(f"mode {mode!r} needs {name}, got None")
    return pixels

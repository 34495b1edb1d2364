"""The adapter of a family whose weights only this package writes: their section `model` always comes with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cavmae_ds.config.sections.init import InitConfig, Positions
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models.common.weights import Weights, filled, fitted


class OwnNames:
    """See StateDictAdapter. Names are the pretraining module's own; a family adds what else it can read."""

    def __init__(self, family: str, mark: str, build: Callable[..., nn.Module]):
        """mark: name of a parameter that no other family has. build: ModelFamily.build["pretrain"]."""
        self._family, self._mark, self._build = family, mark, build

    def recognises(self, names: Collection[str]) -> bool:
        """By the mark."""
        return self._mark in names

    def recognise(self, tensors: Mapping[str, Tensor], source: str, heads: Any, decoder_heads: Any) -> Weights:
        """Shapes alone do not tell the sizes: always raises CheckpointError."""
        raise CheckpointError(
            f"{source} does not say which sizes its {self._family} model has; give a run folder, or a file that "
            "`cavmae export` made of one"
        )

    def kind_of(self, tensors: Mapping[str, Tensor], source: str) -> tuple[str, int]:
        """Pretraining's model."""
        if self._mark not in tensors:
            raise CheckpointError(f"{source} is no model of family {self._family}: {self._mark} is missing")
        return "pretrain", 0

    def in_order(self, weights: Weights) -> Weights:
        """In the order of the module."""
        return fitted(weights, lambda: self._empty(weights), self._family)

    def build(self, weights: Weights, device: torch.device | None) -> nn.Module:
        """The pretraining module."""
        return filled(self._empty(weights), weights, device)

    def heads_of(self, model: Any) -> tuple[int, int]:
        """Section `model` has them."""
        return 0, 0

    def from_mae(self, path: Path, model: Any, init: InitConfig) -> Weights:
        """There is no rule."""
        raise ConfigError(f"init.from_mae: models of family {self._family} do not start from an ImageNet MAE")

    def other_sizes(self, weights: Weights, model: Any, module: nn.Module) -> dict[str, Any]:
        """All keys count."""
        made, wanted = weights.model.model_dump(), model.model_dump()
        return {key: made[key] for key in made if made[key] != wanted[key]}

    def with_audio_frames(self, weights: Weights, frames: int, positions: Positions) -> Weights:
        """There is no rule."""
        raise ConfigError(f"models of family {self._family} are not refitted to log-mels of another length")

    def may_start(
        self, weights: Weights, module: nn.Module, missing: Collection[str], unexpected: Collection[str]
    ) -> bool:
        """Only the same module."""
        return False

    def reads_features(self, name: str) -> bool:
        """All parameters are exported."""
        return True

    def _empty(self, weights: Weights) -> nn.Module:
        with torch.device("meta"):
            return self._build(weights.model, training_normalisation(weights.audio_mean, weights.audio_std))

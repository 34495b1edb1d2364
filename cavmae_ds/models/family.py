"""What a family of models is to everything else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cavmae_ds.config.sections.init import InitConfig, Positions
from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.data.input_spec import InputSpec


class StateDictAdapter(Protocol):
    """How a family's weights are recognised, checked, and turned into models. Names are official ones, without prefix.

    All methods raise CheckpointError for weights that are not the family's, naming the source.
    """

    def recognises(self, names: Collection[str]) -> bool:
        """Whether some names are this family's, as far as a glance tells."""
        ...

    def recognise(self, tensors: Mapping[str, Any], source: str, heads: int | None, decoder_heads: int | None) -> Any:
        """Weights with their section `model`, from names and shapes alone.

        heads, decoder_heads: numbers of attention heads, which no shape determines.
        """
        ...

    def kind_of(self, tensors: Mapping[str, Any], source: str) -> tuple[str, int]:
        """Which model of the family, and its number of classes (0: no classifier)."""
        ...

    def in_order(self, weights: Any) -> Any:
        """The same in the official order and in float32, with exactly the names and shapes of its section."""
        ...

    def build(self, weights: Any, device: Any) -> Any:
        """The model in eval mode, taking raw inputs."""
        ...

    def heads_of(self, model: Any) -> tuple[int, int]:
        """Attention heads of encoder and decoder, for files that do not record them."""
        ...

    def from_mae(self, path: Path, model: Any, init: InitConfig) -> Any:
        """Weights adapted from an ImageNet MAE. Raises ConfigError where the family has no such rule."""
        ...

    def other_sizes(self, weights: Any, model: Any, module: Any) -> dict[str, Any]:
        """Keys of section `model` that must be as the weights were made, where they are not, with the weights' values.

        model, module: of the run that begins with these weights.
        """
        ...

    def with_audio_frames(self, weights: Any, frames: int, positions: Positions) -> Any:
        """The same for log-mels of another length. Raises ConfigError for a length that no model has."""
        ...

    def may_start(self, weights: Any, module: Any, missing: Collection[str], unexpected: Collection[str]) -> bool:
        """Whether a module may begin with weights that lack some of its parameters and have some others."""
        ...

    def reads_features(self, name: str) -> bool:
        """Whether a parameter takes part in features of whole clips; others are left out of exported graphs."""
        ...


@dataclass(frozen=True)
class ModelFamily:
    """A family. Its functions import torch when they are called, so that reading a run file does not."""

    name: str
    """As `model.family` has it."""
    config: type[ModelSection]
    """The `model` section."""
    sections: Mapping[str, Mapping[str, Any]]
    """Task -> further sections of its run file that belong to the family: name -> (class, default or ... if none)."""
    inputs: Callable[[Any, str], InputSpec]
    """(model section, kind of its weights: pretrain, finetune or a further one) -> what is read of a clip."""
    build: Mapping[str, Callable[..., Any]]
    """Task -> module, also on the meta device. pretrain: (model, normalisation); finetune: (model, classifier section,
    classes, normalisation)."""
    targets: Callable[[Any], tuple[str, ...]]
    """model section -> names of what its pretraining model rebuilds (PretrainOutput.targets)."""
    draw_masks: Callable[..., Any]
    """(model section, mask section, seed, repeat of the clip [B], clip index [B]) -> masks of a batch, for the
    pretraining module; a pure function of these."""
    state_dict: Callable[[], StateDictAdapter]
    """Its weights in and out."""
    head: str
    """What names of a classifier's head begin with."""
    depth: Callable[[Any, str], int]
    """(model section, parameter name) -> layers between the input and it, for layer-wise decay."""
    last_depth: Callable[[Any], int]
    """Depth of the layer below the head."""

"""What a family of models is to everything else: the contract of DESIGN's `ModelFamily`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.data.input_spec import InputSpec


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
    """(model section, task) -> what is read of a clip."""
    build: Mapping[str, Callable[..., Any]]
    """Task -> module, also on the meta device. pretrain: (model, normalisation); finetune: (model, classifier section,
    classes, normalisation)."""
    draw_masks: Callable[..., Any]
    """(model section, mask section, seed, repeat of the clip [B], clip index [B]) -> masks of a batch, for the
    pretraining module; a pure function of these."""
    flops: Mapping[str, Callable[..., int]]
    """Task -> FLOPs of forward and backward of a clip, of the model section and the family's section of that task."""
    head: str
    """What names of a classifier's head begin with."""
    depth: Callable[[Any, str], int]
    """(model section, parameter name) -> layers between the input and it, for layer-wise decay."""
    last_depth: Callable[[Any], int]
    """Depth of the layer below the head."""

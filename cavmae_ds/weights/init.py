"""The first weights of a run, where section init gives some."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import whole_shape
from cavmae_ds.errors import CheckpointError
from cavmae_ds.models import family_of
from cavmae_ds.models.common.weights import Weights, differences, shortly
from cavmae_ds.weights.load import open_weights

log = logging.getLogger(__name__)

ORIGIN = "init.json"


class Origin(NamedTuple):
    """What was loaded into a fresh model."""

    source: str
    kind: str
    missing: list[str]
    """Parameters that start fresh."""
    unexpected: list[str]
    """Entries that were left behind."""

    def sentence(self, loaded: int) -> str:
        """For the log."""
        said = f"initial weights: {loaded} entries of {self.source} ({self.kind})"
        if self.missing:
            said += f"; {len(self.missing)} start fresh ({shortly(self.missing)})"
        if self.unexpected:
            said += f"; {len(self.unexpected)} are left behind ({shortly(self.unexpected)})"
        return said


def initialise(
    model: nn.Module,
    init: InitConfig,
    sizes: ModelSection,
    run_dir: Path,
    world: World,
    write: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> None:
    """Give a fresh model, on every rank, what section init says; a run with a checkpoint is left for it.

    write puts a whole value into a parameter that may be sharded. The first rank notes the origin in RUN/init.json.
    Raises CheckpointError (see start_from).
    """
    if not init.given or whole_checkpoints(run_dir):
        return
    origin = start_from(model, init, sizes, write)
    if world.is_first:
        path = init.from_mae or init.from_checkpoint
        assert path is not None
        note = {"identity": _identity(path), **origin._asdict()}
        with written_whole(run_dir / ORIGIN) as unfinished:
            unfinished.write_text(json.dumps(note, indent=1))


def examine_start(
    init: InitConfig, sizes: ModelSection, run_dir: Path, build: Callable[[int], nn.Module], classes: int = 0
) -> Origin | None:
    """Read the weights that a fresh run would begin with, as its start would; None if it begins without any.

    build: the run's model, for a number of classes. classes: of a classifier whose classes are left to the data; 0
    takes whatever fits. Raises CheckpointError as start_from does.
    """
    if not init.given or whole_checkpoints(run_dir):
        return None
    weights = _given(init, sizes)
    with torch.device("meta"):
        model = build(classes or weights.classes)
    return _load(weights, model, init, sizes, lambda parameter, value: None)


@torch.no_grad()
def start_from(
    model: nn.Module,
    init: InitConfig,
    sizes: ModelSection,
    write: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> Origin:
    """Load the weights that section init names into a model of these sizes and say what was.

    A classifier takes a pretrained model without its decoder, its head stays fresh. Raises CheckpointError for any
    other entry that is missing or left over, and for other shapes or numbers of heads.
    """
    return _load(_given(init, sizes), model, init, sizes, write)


def _load(
    weights: Weights,
    model: nn.Module,
    init: InitConfig,
    sizes: ModelSection,
    write: Callable[[Tensor, Tensor], object],
) -> Origin:
    family = family_of(sizes.family)
    adapter = family.state_dict()
    if weights.model.family != sizes.family:
        raise CheckpointError(
            f"{weights.source} is a model of family {weights.model.family}, this run's model.family is {sizes.family}; "
            "change it, or take other weights"
        )
    if differing := adapter.other_sizes(weights, sizes, model):
        raise CheckpointError(
            f"{weights.source} was made with other sizes than this run has; set model: "
            f"{{{', '.join(f'{key}: {value}' for key, value in differing.items())}}}, or take other weights"
        )
    frames = family.inputs(sizes, weights.kind).log_mel_frames
    if family.inputs(weights.model, weights.kind).log_mel_frames != frames:
        weights = adapter.with_audio_frames(weights, frames, init.positions)
    parameters = dict(model.named_parameters())
    origin = _compare(weights, model, parameters)
    loaded = {name: value for name, value in weights.tensors.items() if name in parameters}
    for name, value in loaded.items():
        needed = whole_shape(parameters[name])
        if value.shape != needed:
            raise CheckpointError(
                f"{weights.source} does not fit this run: {name} is of shape {tuple(value.shape)}, needed is "
                f"{tuple(needed)}; change sections model or classifier, or take other weights"
            )
    for name, value in loaded.items():
        write(parameters[name], value)
    log.info(origin.sentence(len(loaded)))
    return origin


def _given(init: InitConfig, sizes: ModelSection) -> Weights:
    adapter = family_of(sizes.family).state_dict()
    if init.from_checkpoint:
        return open_weights(init.from_checkpoint, init.ema, *adapter.heads_of(sizes))
    assert init.from_mae is not None
    return adapter.from_mae(init.from_mae, sizes, init)


def _compare(weights: Weights, model: nn.Module, parameters: Collection[str]) -> Origin:
    """What will be missing and left over. Raises CheckpointError unless the family allows it, as a new head."""
    missing = [name for name in parameters if name not in weights.tensors]
    unexpected = [name for name in weights.tensors if name not in parameters]
    adapter = family_of(weights.model.family).state_dict()
    if (missing or unexpected) and not adapter.may_start(weights, model, missing, unexpected):
        raise CheckpointError(
            f"{weights.source} ({weights.kind}) cannot start this run: {differences(missing, unexpected)}"
        )
    return Origin(weights.source, weights.kind, missing, unexpected)


def _identity(path: Path) -> str:
    """A file's SHA-256, or the name of a run folder's newest checkpoint."""
    if path.is_dir():
        return whole_checkpoints(path)[-1].name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"

"""The first weights of a run, where section init gives some."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import whole_shape
from cavmae_ds.errors import CheckpointError
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.encoder import Encoder
from cavmae_ds.models.cavmae.mae import adapt_mae, read_mae
from cavmae_ds.models.cavmae.model import CAVMAE, in_decoder
from cavmae_ds.models.cavmae.state_dict import Weights, differences, recognise, shortly, with_audio_frames
from cavmae_ds.tasks import task_of
from cavmae_ds.weights.load import open_weights

log = logging.getLogger(__name__)

ORIGIN = "init.json"
ENCODER_SIZES = "embed_dim", "num_heads", "modality_specific_depth", "shared_depth", "mlp_ratio", "patch_size"
DECODER_SIZES = "decoder_embed_dim", "decoder_num_heads", "decoder_depth"


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
    model: Encoder,
    init: InitConfig,
    sizes: ModelConfig,
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


def examine_start(cfg: RunConfig, classes: int = 0) -> Origin | None:
    """Read the weights that a fresh run would begin with, as its start would; None if it begins without any.

    classes: of a classifier whose classes are left to the data; 0 takes whatever fits. Raises CheckpointError as
    start_from does.
    """
    if not cfg.init.given or whole_checkpoints(cfg.run_dir):
        return None
    sizes = cast(ModelConfig, cfg.model)
    weights = _given(cfg.init, sizes)
    with torch.device("meta"):
        model = cast(Encoder, task_of(cfg).build_model(cfg, classes or weights.classes))
    return _load(weights, model, cfg.init, sizes, lambda parameter, value: None)


@torch.no_grad()
def start_from(
    model: Encoder,
    init: InitConfig,
    sizes: ModelConfig,
    write: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> Origin:
    """Load the weights that section init names into a model of these sizes and say what was.

    A classifier takes a pretrained model without its decoder, its head stays fresh. Raises CheckpointError for any
    other entry that is missing or left over, and for other shapes or numbers of heads.
    """
    return _load(_given(init, sizes), model, init, sizes, write)


def _load(
    weights: Weights,
    model: Encoder,
    init: InitConfig,
    sizes: ModelConfig,
    write: Callable[[Tensor, Tensor], object],
) -> Origin:
    if differing := _other_sizes(weights, sizes, model):
        raise CheckpointError(
            f"{weights.source} was made with other sizes than this run has; set model: "
            f"{{{', '.join(f'{key}: {value}' for key, value in differing.items())}}}, or take other weights"
        )
    if weights.model.audio_frames != sizes.audio_frames:
        weights = with_audio_frames(weights, sizes.audio_frames, init.positions)
    parameters = dict(model.named_parameters())
    origin = _compare(weights, parameters, model.modalities)
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


def _other_sizes(weights: Weights, sizes: ModelConfig, model: Encoder) -> dict[str, Any]:
    """Keys of section model that must be as the weights were made, where they are not, with the weights' values."""
    keys = [*ENCODER_SIZES]
    if weights.kind == "pretrain" and isinstance(model, CAVMAE):
        keys += DECODER_SIZES
    if "v" in model.modalities and weights.kind != "finetune-audio":
        keys.append("image_size")
    made, wanted = weights.model.model_dump(), sizes.model_dump()
    if not weights.heads_known:  # no shape tells them, and the ratio only roughly
        keys = [key for key in keys if key not in ("num_heads", "decoder_num_heads", "mlp_ratio")]
    differing = [key for key in keys if made[key] != wanted[key]]
    if differing and made["audio_frames"] != wanted["audio_frames"]:
        differing.append("audio_frames")  # alone it is refitted
    return {key: made[key] for key in differing}


def _given(init: InitConfig, sizes: ModelConfig) -> Weights:
    if init.from_checkpoint:
        return open_weights(init.from_checkpoint, init.ema, sizes.num_heads, sizes.decoder_num_heads)
    assert init.from_mae is not None
    source = str(init.from_mae)
    state = adapt_mae(read_mae(init.from_mae), sizes, init.audio_head, source)
    return recognise(state, source, sizes.num_heads, sizes.decoder_num_heads)


def _compare(weights: Weights, parameters: Collection[str], modalities: Collection[str]) -> Origin:
    """What will be missing and left over. Raises CheckpointError unless that is a new head for an old decoder."""
    missing = [name for name in parameters if name not in weights.tensors]
    unexpected = [name for name in weights.tensors if name not in parameters]

    def is_decoders_or_blind(name: str) -> bool:
        blind = "v" not in modalities and name.split(".")[0].endswith("_v")
        return in_decoder(name) or blind

    new_head = weights.kind == "pretrain" and all(name.startswith("mlp_head.") for name in missing)
    if (missing or unexpected) and not (missing and new_head and all(map(is_decoders_or_blind, unexpected))):
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

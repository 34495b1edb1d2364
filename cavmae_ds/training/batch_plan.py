"""The numbers that follow from a run's config, the ranks it gets and the clips it finds: never configured twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.config.sections.common import RunConfig
from cavmae_ds.data.format.fingerprint import fingerprint
from cavmae_ds.data.format.shards import check_shards, read_manifest
from cavmae_ds.data.loading.order import steps_per_epoch
from cavmae_ds.data.loading.sources import training_sources
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.models.cavmae.classifier import CLASSIFIERS
from cavmae_ds.models.cavmae.flops import classifier_flops, training_flops
from cavmae_ds.plan.activations import activations
from cavmae_ds.plan.modes import modes_of
from cavmae_ds.plan.states import count, states
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.training.freezing import freeze_unused


@dataclass(frozen=True)
class CommonNumbers:
    """What any run amounts to, exactly."""

    ranks: int
    clips: int
    clips_by_source: tuple[int, ...]
    epoch_clips: int
    held_out_clips: int
    global_batch: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    total_clips: int
    zero_stage: int
    peak_learning_rate: float
    warmup_steps: int
    parameters: int
    trainable_parameters: int
    gflop_per_clip: float
    fingerprints: tuple[str, ...] = field(default=(), kw_only=True)

    def lines(self) -> str:
        """As YAML comment lines, for --dry-run and the log."""
        return "\n".join(f"# {key}: {value}" for key, value in asdict(self).items())


@dataclass(frozen=True)
class RunNumbers(CommonNumbers):
    """What a pretraining run amounts to. Memory figures are estimates."""

    states_gib_per_rank: float
    activations_gib_per_rank: float


@dataclass(frozen=True)
class FinetuneNumbers(CommonNumbers):
    """What a finetuning run amounts to."""

    classes: int
    class_names: tuple[str, ...]


class _Clips(NamedTuple):
    """What there is to train on: clips of each source, of an epoch, and those kept for validation; which clips."""

    by_source: tuple[int, ...]
    epoch: int
    held_out: int
    fingerprints: tuple[str, ...] = ()


def derive(cfg: PretrainConfig, ranks: int, clips: int | None = None) -> RunNumbers:
    """Check the run against its ranks, its engine fragment and its shards, and count.

    clips: size of the data set, where there are no shards to ask.

    Raises ConfigError (batch not divisible, nothing to train on, fragment) and DataError (no shards, wrong frame size).
    """
    common = _common(cfg, ranks, clips)
    accumulation, chunks = common["accumulation"], cfg.contrastive.chunks
    if chunks and chunks % accumulation and not cfg.contrastive.two_pass:
        raise ConfigError(
            f"contrastive.negatives chunk={chunks} must be a multiple of the {accumulation} micro-batches of a step, "
            f"or its parts reach over several; choose a larger train.micro_batch or contrastive.two_pass: true"
        )
    parameters = count(cfg)
    held = states(cfg, read_fragment(cfg), parameters, ranks)
    saved = activations(
        cfg.model, cfg.mask, cfg.loss, cfg.train.precision, cfg.train.micro_batch, modes_of(cfg), parameters.decoder
    )
    return RunNumbers(
        **common,
        parameters=parameters.total,
        trainable_parameters=parameters.trainable,
        gflop_per_clip=round(training_flops(cfg.model, cfg.mask) / 1e9, 2),
        states_gib_per_rank=round(held.total / 2**30, 3),
        activations_gib_per_rank=round(saved.total / 2**30, 3),
    )


def derive_finetuning(
    cfg: FinetuneConfig, ranks: int, clips: int | None = None, class_names: tuple[str, ...] | None = None
) -> FinetuneNumbers:
    """As derive, for a finetuning run. clips, class_names: of the data set, where there are no shards to ask.

    Raises ConfigError as well if there are no classes, or fewer than the shards name.
    """
    common = _common(cfg, ranks, clips)
    names = _class_names(cfg) if class_names is None else class_names
    classes = cfg.classifier.classes or len(names)
    if classes < max(len(names), 1):
        raise ConfigError(
            f"classifier.classes must be at least the {len(names)} classes that the training shards name, got "
            f"{classes}; leave it out, or prepare the clips with labels if they name none"
        )
    with torch.device("meta"):
        model = CLASSIFIERS[cfg.classifier.model](cfg.model, classes)
    freeze_unused(model, cfg)
    parameters = list(model.parameters())
    return FinetuneNumbers(
        **common,
        parameters=sum(one.numel() for one in parameters),
        trainable_parameters=sum(one.numel() for one in parameters if one.requires_grad),
        gflop_per_clip=round(classifier_flops(cfg.model, cfg.classifier) / 1e9, 2),
        classes=classes,
        class_names=names,
    )


def _common(cfg: RunConfig, ranks: int, clips: int | None) -> dict[str, Any]:
    """What derive finds for any run: fields of CommonNumbers, but for those of the model."""
    per_step = cfg.train.micro_batch * ranks
    if cfg.train.global_batch % per_step:
        below = cfg.train.global_batch - cfg.train.global_batch % per_step
        near = f"{below} or {below + per_step}" if below else f"{per_step}"
        per_rank, rest = divmod(cfg.train.global_batch, ranks)
        smaller = max((n for n in range(1, cfg.train.micro_batch) if per_rank % n == 0), default=0)
        raise ConfigError(
            f"train.global_batch must be a multiple of train.micro_batch x ranks = {cfg.train.micro_batch} x {ranks} = "
            f"{per_step}, got {cfg.train.global_batch}; {near} would fit"
            + (f", or train.micro_batch: {smaller}" if smaller and not rest else "")
        )
    accumulation = cfg.train.global_batch // per_step
    fragment = read_fragment(cfg)
    counted = _count_clips(cfg) if clips is None else _Clips((clips,), clips, 0)
    in_epoch = steps_per_epoch(counted.epoch, cfg.data.canonical_nodes, cfg.train.global_batch)
    if not in_epoch:
        addresses = ", ".join(repr(source.remote) for source in cfg.data.all_sources) or "the data set"
        raise DataError(
            f"an epoch of {addresses} has {counted.epoch} clips, fewer than train.global_batch = "
            f"{cfg.train.global_batch}; lower it or prepare more clips"
        )
    total_steps = cfg.train.steps or (cfg.train.epochs or 0) * in_epoch
    total_clips = total_steps * cfg.train.global_batch
    warmup_steps = cfg.optim.warmup_steps(cfg.train.global_batch)
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_clips must leave steps after the warm-up, got {cfg.optim.warmup_clips} in a run of "
            f"{total_clips} clips ({total_steps} steps); lower it or train for longer"
        )
    return {
        "ranks": ranks,
        "clips": sum(counted.by_source),
        "clips_by_source": counted.by_source,
        "epoch_clips": counted.epoch,
        "held_out_clips": counted.held_out,
        "global_batch": cfg.train.global_batch,
        "accumulation": accumulation,
        "steps_per_epoch": in_epoch,
        "total_steps": total_steps,
        "total_clips": total_clips,
        "zero_stage": zero_stage(fragment),
        "peak_learning_rate": cfg.optim.peak_learning_rate(cfg.train.global_batch),
        "warmup_steps": warmup_steps,
        "fingerprints": counted.fingerprints,
    }


def _count_clips(cfg: RunConfig) -> _Clips:
    if not (cfg.data.train or cfg.data.sources):
        raise ConfigError(
            "data.train is not set: give the folder or s3:// address that `cavmae prepare` wrote, or data.sources"
        )
    sources = training_sources(
        cfg.data, [check_shards(source.remote, cfg.model, cfg.data) for source in cfg.data.all_sources]
    )
    if cfg.data.validation:
        check_shards(cfg.data.validation, cfg.model, cfg.data)
    return _Clips(
        by_source=tuple(len(source.trained) for source in sources),
        epoch=sum(source.epoch_clips for source in sources),
        held_out=sum(int((~source.trained).sum()) for source in sources),
        fingerprints=tuple(
            fingerprint(entry.remote, cfg.data, source.weights)
            for entry, source in zip(cfg.data.all_sources, sources, strict=True)
        ),
    )


def _class_names(cfg: FinetuneConfig) -> tuple[str, ...]:
    """The classes that all training sources, and data.validation, name alike. Raises ConfigError."""
    addresses = [source.remote for source in cfg.data.all_sources] + [cfg.data.validation] * bool(cfg.data.validation)
    first, *others = (read_manifest(address, cfg.data).classes for address in addresses)
    for address, names in zip(addresses[1:], others, strict=True):
        if names != first:
            raise ConfigError(
                f"{address!r} names {len(names)} classes, {addresses[0]!r} {len(first)} or other ones; prepare both "
                "with the same list of classes"
            )
    return first

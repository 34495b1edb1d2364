"""The numbers that follow from a run's config, the ranks it gets and the clips it finds: never configured twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

from cavmae_ds.config.engine_fragment import read_fragment, zero_stage
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.order import steps_per_epoch
from cavmae_ds.data.shards import check_shards
from cavmae_ds.data.sources import training_sources
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.model.flops import training_flops
from cavmae_ds.plan.activations import activations
from cavmae_ds.plan.modes import modes_of
from cavmae_ds.plan.states import count, states


@dataclass(frozen=True)
class RunNumbers:
    """What a run amounts to. Memory figures are estimates; everything else is exact."""

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
    parameters: int
    trainable_parameters: int
    gflop_per_clip: float
    zero_stage: int
    states_gib_per_rank: float
    activations_gib_per_rank: float
    peak_learning_rate: float
    warmup_steps: int

    def lines(self) -> str:
        """As YAML comment lines, for --dry-run and the log."""
        return "\n".join(f"# {key}: {value}" for key, value in asdict(self).items())


class _Clips(NamedTuple):
    """What there is to train on: clips of each source, of an epoch, and those kept for validation."""

    by_source: tuple[int, ...]
    epoch: int
    held_out: int


def derive(cfg: RunConfig, ranks: int, clips: int | None = None) -> RunNumbers:
    """Check the run against its ranks, its engine fragment and its shards, and count.

    clips: size of the data set, where there are no shards to ask.

    Raises ConfigError (batch not divisible, nothing to train on, fragment) and DataError (no shards, wrong frame size).
    """
    per_step = cfg.train.micro_batch * ranks
    if cfg.train.global_batch % per_step:
        below = cfg.train.global_batch - cfg.train.global_batch % per_step
        near = f"{below} or {below + per_step}" if below else f"{per_step}"
        raise ConfigError(
            f"train.global_batch must be a multiple of train.micro_batch x ranks = {cfg.train.micro_batch} x {ranks} = "
            f"{per_step}, got {cfg.train.global_batch}; {near} would fit"
        )
    accumulation = cfg.train.global_batch // per_step
    chunks = cfg.contrastive.chunks
    if chunks and chunks % accumulation and not cfg.contrastive.two_pass:
        raise ConfigError(
            f"contrastive.negatives chunk={chunks} must be a multiple of the {accumulation} micro-batches of a step, "
            f"or its parts reach over several; choose a larger train.micro_batch or contrastive.two_pass: true"
        )
    fragment = read_fragment(cfg)
    counted = _count_clips(cfg) if clips is None else _Clips((clips,), clips, 0)
    in_epoch = steps_per_epoch(counted.epoch, cfg.data.canonical_nodes, cfg.train.global_batch)
    if not in_epoch:
        addresses = ", ".join(repr(source.remote) for source in cfg.data.all_sources)
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
    parameters, micro_batch = count(cfg), cfg.train.micro_batch
    held = states(cfg, fragment, parameters, ranks)
    saved = activations(
        cfg.model, cfg.mask, cfg.loss, cfg.train.precision, micro_batch, modes_of(cfg), parameters.decoder
    )
    return RunNumbers(
        ranks=ranks,
        clips=sum(counted.by_source),
        clips_by_source=counted.by_source,
        epoch_clips=counted.epoch,
        held_out_clips=counted.held_out,
        global_batch=cfg.train.global_batch,
        accumulation=accumulation,
        steps_per_epoch=in_epoch,
        total_steps=total_steps,
        total_clips=total_clips,
        parameters=parameters.total,
        trainable_parameters=parameters.trainable,
        gflop_per_clip=round(training_flops(cfg.model, cfg.mask) / 1e9, 2),
        zero_stage=zero_stage(fragment),
        states_gib_per_rank=round(held.total / 2**30, 3),
        activations_gib_per_rank=round(saved.total / 2**30, 3),
        peak_learning_rate=cfg.optim.peak_learning_rate(cfg.train.global_batch),
        warmup_steps=warmup_steps,
    )


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
    )

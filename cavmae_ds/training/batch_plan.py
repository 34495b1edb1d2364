"""The numbers of a run of any task: never configured twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.config.sections.training import OptimConfig, TrainConfig
from cavmae_ds.data.format.fingerprint import fingerprint
from cavmae_ds.data.format.shards import check_shards, read_manifest
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.order import steps_per_epoch
from cavmae_ds.data.loading.sources import training_sources
from cavmae_ds.errors import ConfigError, DataError


class _Clips(NamedTuple):
    """What there is to train on: clips of each source, of an epoch, and those kept for validation; which clips."""

    by_source: tuple[int, ...]
    epoch: int
    held_out: int
    fingerprints: tuple[str, ...] = ()


def batch_plan(
    inputs: InputSpec, ranks: int, clips: int | None, *, train: TrainConfig, optim: OptimConfig, data: DataConfig,
    ds_config: Path,
) -> dict[str, Any]:  # fmt: skip
    """Fields of RunPlan, but for those of the model. clips: of the data set, where there are no shards to ask.

    Raises ConfigError (batch not divisible, nothing to train on, DeepSpeed config) and DataError (no shards, wrong
    frame size, fewer clips than a step takes).
    """
    per_step = train.micro_batch * ranks
    if train.global_batch % per_step:
        below = train.global_batch - train.global_batch % per_step
        near = f"{below} or {below + per_step}" if below else f"{per_step}"
        per_rank, rest = divmod(train.global_batch, ranks)
        smaller = max((n for n in range(1, train.micro_batch) if per_rank % n == 0), default=0)
        raise ConfigError(
            f"train.global_batch must be a multiple of train.micro_batch x ranks = {train.micro_batch} x {ranks} = "
            f"{per_step}, got {train.global_batch}; {near} would fit"
            + (f", or train.micro_batch: {smaller}" if smaller and not rest else "")
        )
    accumulation = train.global_batch // per_step
    fragment = read_fragment(ds_config, train.precision)
    counted = _count_clips(data, inputs) if clips is None else _Clips((clips,), clips, 0)
    in_epoch = steps_per_epoch(counted.epoch, data.canonical_nodes, train.global_batch)
    if not in_epoch:
        addresses = ", ".join(repr(source.remote) for source in data.all_sources) or "the data set"
        raise DataError(
            f"an epoch of {addresses} has {counted.epoch} clips, fewer than train.global_batch = "
            f"{train.global_batch}; lower it or prepare more clips"
        )
    total_steps = train.steps or (train.epochs or 0) * in_epoch
    total_clips = total_steps * train.global_batch
    warmup_steps = optim.warmup_steps(train.global_batch)
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_clips must leave steps after the warm-up, got {optim.warmup_clips} in a run of "
            f"{total_clips} clips ({total_steps} steps); lower it or train for longer"
        )
    return {
        "ranks": ranks,
        "clips": sum(counted.by_source),
        "clips_by_source": counted.by_source,
        "epoch_clips": counted.epoch,
        "held_out_clips": counted.held_out,
        "global_batch": train.global_batch,
        "accumulation": accumulation,
        "steps_per_epoch": in_epoch,
        "total_steps": total_steps,
        "total_clips": total_clips,
        "zero_stage": zero_stage(fragment),
        "peak_learning_rate": optim.peak_learning_rate(train.global_batch),
        "warmup_steps": warmup_steps,
        "fingerprints": counted.fingerprints,
    }


def _count_clips(data: DataConfig, inputs: InputSpec) -> _Clips:
    if not (data.train or data.sources):
        raise ConfigError(
            "data.train is not set: give the folder or s3:// address that `cavmae prepare` wrote, or data.sources"
        )

    def check(address: str) -> NDArray[np.int64]:
        frame_size = inputs.frame_size if inputs.frames else None
        return check_shards(address, frame_size, data, reads_audio=inputs.log_mel_frames > 0)

    sources = training_sources(data, [check(source.remote) for source in data.all_sources])
    if data.validation:
        check(data.validation)
    return _Clips(
        by_source=tuple(len(source.trained) for source in sources),
        epoch=sum(source.epoch_clips for source in sources),
        held_out=sum(int((~source.trained).sum()) for source in sources),
        fingerprints=tuple(
            fingerprint(entry.remote, data, source.weights)
            for entry, source in zip(data.all_sources, sources, strict=True)
        ),
    )


def class_names(data: DataConfig) -> tuple[str, ...]:
    """The classes that all training sources, and data.validation, name alike. Raises ConfigError."""
    addresses = [source.remote for source in data.all_sources] + [data.validation] * bool(data.validation)
    first, *others = (read_manifest(address, data).classes for address in addresses)
    for address, names in zip(addresses[1:], others, strict=True):
        if names != first:
            raise ConfigError(
                f"{address!r} names {len(names)} classes, {addresses[0]!r} {len(first)} or other ones; prepare both "
                "with the same list of classes"
            )
    return first

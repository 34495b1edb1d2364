"""The numbers that follow from a run's config, the ranks it gets and the clips it finds: never configured twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cavmae_ds.config.engine_fragment import read_fragment, zero_stage
from cavmae_ds.config.sections import RunConfig
from cavmae_ds.data.order import steps_per_epoch
from cavmae_ds.data.shards import check_shards
from cavmae_ds.data.sources import training_sources
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.model.cavmae import count_parameters
from cavmae_ds.model.flops import token_width_sum, training_flops


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

    def lines(self) -> str:
        """As YAML comment lines, for --dry-run and the log."""
        return "\n".join(f"# {key}: {value}" for key, value in asdict(self).items())


def derive(cfg: RunConfig, ranks: int) -> RunNumbers:
    """Check the run against its ranks, its engine fragment and its shards, and count.

    Raises ConfigError (batch not divisible, canonical nodes, fragment) and DataError (no shards, wrong frame size).
    """
    per_step = cfg.train.micro_batch * ranks
    if cfg.train.global_batch % per_step:
        below = cfg.train.global_batch - cfg.train.global_batch % per_step
        near = f"{below} or {below + per_step}" if below else f"{per_step}"
        raise ConfigError(
            f"train.global_batch must be a multiple of train.micro_batch x ranks = {cfg.train.micro_batch} x {ranks} = "
            f"{per_step}, got {cfg.train.global_batch}; {near} would fit"
        )
    stage = zero_stage(read_fragment(cfg))
    if not (cfg.data.train or cfg.data.sources):
        raise ConfigError(
            "data.train is not set: give the folder or s3:// address that `cavmae prepare` wrote, or data.sources"
        )
    sources = training_sources(
        cfg.data, [check_shards(source.remote, cfg.model, cfg.data) for source in cfg.data.all_sources]
    )
    if cfg.data.validation:
        check_shards(cfg.data.validation, cfg.model, cfg.data)
    epoch_clips = sum(source.epoch_clips for source in sources)
    in_epoch = steps_per_epoch(epoch_clips, cfg.data.canonical_nodes, cfg.train.global_batch)
    if not in_epoch:
        addresses = ", ".join(repr(source.remote) for source in cfg.data.all_sources)
        raise DataError(
            f"an epoch of {addresses} has {epoch_clips} clips, fewer than train.global_batch = "
            f"{cfg.train.global_batch}; lower it or prepare more clips"
        )
    total_steps = cfg.train.steps or (cfg.train.epochs or 0) * in_epoch
    if cfg.optim.warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_steps must be less than the run's {total_steps} steps, got {cfg.optim.warmup_steps}"
        )
    parameters = count_parameters(cfg.model)
    positions = (cfg.model.audio_patches + cfg.model.image_patches) * (
        cfg.model.embed_dim + cfg.model.decoder_embed_dim
    )
    return RunNumbers(
        ranks=ranks,
        clips=sum(len(source.trained) for source in sources),
        clips_by_source=tuple(len(source.trained) for source in sources),
        epoch_clips=epoch_clips,
        held_out_clips=sum(int((~source.trained).sum()) for source in sources),
        global_batch=cfg.train.global_batch,
        accumulation=cfg.train.global_batch // per_step,
        steps_per_epoch=in_epoch,
        total_steps=total_steps,
        total_clips=total_steps * cfg.train.global_batch,
        parameters=parameters,
        trainable_parameters=parameters if cfg.model.trainable_positions else parameters - positions,
        gflop_per_clip=round(training_flops(cfg.model, cfg.mask) / 1e9, 2),
        zero_stage=stage,
        states_gib_per_rank=round(_state_bytes(parameters, stage, ranks, cfg.train.precision) / 2**30, 3),
        activations_gib_per_rank=round(_activation_bytes(cfg) / 2**30, 3),
    )


def _state_bytes(parameters: int, stage: int, ranks: int, precision: str) -> float:
    """Weights, gradients, AdamW moments and (bf16) fp32 master weights of one rank: the ZeRO paper's bookkeeping."""
    weights, gradients, optimizer = (2, 4, 12) if precision == "bf16" else (4, 4, 8)
    weights_share = ranks if stage >= 3 else 1
    gradients_share = ranks if stage >= 2 else 1
    return parameters * (weights / weights_share + gradients / gradients_share + optimizer / ranks)


def _activation_bytes(cfg: RunConfig) -> float:
    """What one micro-batch saves for backward: 32 bytes per token and width in bf16 (spec/scale.md 2d)."""
    per_token_width = 32 if cfg.train.precision == "bf16" else 64
    return cfg.train.micro_batch * token_width_sum(cfg.model, cfg.mask) * per_token_width

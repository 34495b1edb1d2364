"""A run's config and its engine fragment become one DeepSpeed engine."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.config.engine_fragment import read_fragment
from cavmae_ds.distributed import World
from cavmae_ds.model.cavmae import CAVMAE
from cavmae_ds.optim import adamw, learning_rate_share, parameter_groups


def engine_config(cfg: RunConfig, numbers: RunNumbers) -> dict[str, Any]:
    """The fragment plus all that the run file decides. Raises ConfigError where the two overlap."""
    config = {
        **read_fragment(cfg),
        "train_batch_size": cfg.train.global_batch,
        "train_micro_batch_size_per_gpu": cfg.train.micro_batch,
        "gradient_accumulation_steps": numbers.accumulation,
        "gradient_clipping": cfg.optim.clip_grad_norm,
        "steps_per_print": 10**9,  # the monitor speaks; DeepSpeed need not
        "zero_allow_untested_optimizer": True,  # torch's own AdamW: elementwise, so a sharded flat view is the same
    }
    if cfg.train.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # DeepSpeed would sum micro-batches in bf16: 8 bits of mantissa swallow small contributions.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def build_engine(cfg: RunConfig, numbers: RunNumbers, model: CAVMAE, world: World) -> Any:
    """Wrap a freshly initialised model: frozen leftovers, AdamW groups, schedule, ZeRO. Returns a DeepSpeedEngine."""
    import deepspeed

    freeze_unused(model, cfg)
    groups = parameter_groups(model.named_parameters(), cfg.optim.weight_decay)
    optimizer = adamw(groups, cfg.optim, world.device)
    share = lambda step: learning_rate_share(step, cfg.optim, numbers.total_steps, numbers.steps_per_epoch)  # noqa: E731
    engine, *_ = deepspeed.initialize(
        model=model.to(world.device),
        optimizer=optimizer,
        config=engine_config(cfg, numbers),
        lr_scheduler=lambda built: LambdaLR(built, share),
        dist_init_required=False,
    )
    return engine


def freeze_unused(model: CAVMAE, cfg: RunConfig) -> None:
    """Parameters that no loss of this run reaches stay as they are: no decay, no stale gradient (spec traps 3)."""
    unused = model.unused_parameters(mae=cfg.loss.mae_weight > 0, contrastive=cfg.loss.contrastive_weight > 0)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)

"""A run's config and its engine fragment become one DeepSpeed engine."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.config.sections.training import TrainConfig
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import find_partitions, write_shard
from cavmae_ds.tasks.task import Task, freeze_unused
from cavmae_ds.training.optim.build import build_optimizer
from cavmae_ds.training.optim.layerwise import LayerwiseOptimizer
from cavmae_ds.training.optim.schedule import learning_rate_share
from cavmae_ds.weights.init import initialise


def engine_config(
    fragment: dict[str, Any], train: TrainConfig, accumulation: int, clip_grad_norm: float
) -> dict[str, Any]:
    """The fragment (see read_fragment) plus all that the run file decides."""
    config = {
        **fragment,
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_grad_norm,
        "steps_per_print": 10**9,  # the monitor speaks; DeepSpeed need not
        "zero_allow_untested_optimizer": True,  # elementwise, or told its layers: optim/
    }
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # DeepSpeed would sum micro-batches in bf16: 8 bits of mantissa swallow small contributions.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def build_model(task: Task, world: World) -> Any:
    """The model of a run with its initial weights, on the CPU.

    For ZeRO-3 on the device instead, every layer cut into shards as soon as it is made: no rank ever holds the model
    whole. The weights are the same.
    """
    import deepspeed

    cfg = task.cfg
    torch.manual_seed(cfg.train.seed)
    config = engine_config(
        read_fragment(cfg.ds_config, cfg.train.precision), cfg.train, task.plan.accumulation, cfg.optim.clip_grad_norm
    )
    model: Any
    write = partial(write_shard, rank=world.rank)
    if zero_stage(config) < 3:
        model = task.build_model(cfg, task.plan.head_classes())
    else:
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = task.build_model(cfg, task.plan.head_classes())
        model.reset_parameters(write)
    initialise(model, cfg.init, cfg.model, cfg.run_dir, world, write)
    return model


def build_engine(task: Task, model: Any, world: World) -> Any:
    """Wrap a freshly initialised model: frozen leftovers, optimizer, schedule, ZeRO. Returns a DeepSpeedEngine."""
    import deepspeed

    cfg, numbers = task.cfg, task.plan
    freeze_unused(type(task), cfg, model)
    batch = cfg.train.global_batch
    peak = cfg.optim.peak_learning_rate(batch)
    optimizer = build_optimizer(model.named_parameters(), cfg.optim, peak, world.device, task.lr_scale(cfg))
    share = partial(
        learning_rate_share,
        cfg=cfg.optim, total_steps=numbers.total_steps, steps_per_epoch=numbers.steps_per_epoch, global_batch=batch,
    )  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=model.to(world.device),
        optimizer=optimizer,
        config=engine_config(
            read_fragment(cfg.ds_config, cfg.train.precision), cfg.train, numbers.accumulation, cfg.optim.clip_grad_norm
        ),
        lr_scheduler=lambda built: LambdaLR(built, share),
        dist_init_required=False,
    )
    if engine.zero_optimization_stage() == 0:
        _may_overflow(engine.optimizer)
    if isinstance(optimizer, LayerwiseOptimizer):
        optimizer.adopt(find_partitions(engine, world))
    if engine.zero_optimization_stage() == 3:
        for module, parameter in model.external_parameters():
            deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def leave_out(engine: Any, left_out: bool) -> None:
    """Whether the step that comes is one that is not taken, whatever its gradient: back_propagate sees to it."""
    engine.left_out = left_out


def back_propagate(engine: Any, loss: torch.Tensor) -> None:
    """engine.backward(). A loss that is not finite gives gradients that are not, so that no rank takes the step.

    Its formula alone might not: the gradient of an infinite cross-entropy is finite.
    """
    factor = torch.nan if getattr(engine, "left_out", False) else 1.0
    engine.backward(loss * torch.where(loss.detach().isfinite(), factor, torch.nan))


def take_step(engine: Any) -> torch.Tensor | float:
    """engine.step(); returns the norm of the whole gradient before clipping, 0 where no update was due yet.

    Not as a plain number: reading it would wait for the device. All ranks skip a step whose gradient is not finite:
    weights and the optimizer's state stay as they are, engine.was_step_applied() is False, the norm is not finite; the
    learning rate goes on, for it belongs to the step.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return 0.0
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed tells none in float32
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        engine.optimizer.overflow = not norm.isfinite()
    engine.step()
    if not engine.was_step_applied():
        with warnings.catch_warnings(action="ignore"):  # torch takes a first step that is skipped for a mistake
            engine.lr_scheduler.step()
    return engine.get_global_grad_norm() if norm is None else norm


def _may_overflow(optimizer: Any) -> None:
    """Teach torch's optimizer what those of ZeRO know: to change nothing while `overflow`, which the engine reads."""

    def drop_gradients(optimizer: Any, *_: Any) -> None:
        if optimizer.overflow:
            optimizer.zero_grad(set_to_none=True)  # what has no gradient is passed over

    optimizer.overflow = False
    optimizer.register_step_pre_hook(drop_gradients)

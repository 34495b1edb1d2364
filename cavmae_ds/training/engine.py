"""A run's config and its engine fragment become one DeepSpeed engine."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.config.sections.common import RunConfig
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.zero_layout import find_partitions, write_shard
from cavmae_ds.models.cavmae.classifier import CLASSIFIERS
from cavmae_ds.models.cavmae.encoder import Encoder
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.training.batch_plan import CommonNumbers, FinetuneNumbers
from cavmae_ds.training.freezing import freeze_unused
from cavmae_ds.training.optim import (
    LayerwiseOptimizer,
    all_alike,
    build_optimizer,
    classifier_rate,
    learning_rate_share,
)
from cavmae_ds.weights.init import initialise


def engine_config(cfg: RunConfig, numbers: CommonNumbers) -> dict[str, Any]:
    """The fragment plus all that the run file decides. Raises ConfigError where the two overlap."""
    config = {
        **read_fragment(cfg),
        "train_batch_size": cfg.train.global_batch,
        "train_micro_batch_size_per_gpu": cfg.train.micro_batch,
        "gradient_accumulation_steps": numbers.accumulation,
        "gradient_clipping": cfg.optim.clip_grad_norm,
        "steps_per_print": 10**9,  # the monitor speaks; DeepSpeed need not
        "zero_allow_untested_optimizer": True,  # elementwise, or told its layers: optim/
    }
    if cfg.train.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # DeepSpeed would sum micro-batches in bf16: 8 bits of mantissa swallow small contributions.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def build_model(cfg: RunConfig, numbers: CommonNumbers, world: World) -> Encoder:
    """The model of a run with its initial weights, on the CPU.

    For ZeRO-3 on the device instead, every layer cut into shards as soon as it is made: no rank ever holds the model
    whole. The weights are the same.
    """
    import deepspeed

    torch.manual_seed(cfg.train.seed)
    config = engine_config(cfg, numbers)
    write = partial(write_shard, rank=world.rank)
    if zero_stage(config) < 3:
        model = _blank_model(cfg, numbers)
    else:
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = _blank_model(cfg, numbers)
        model.reset_parameters(write)
    initialise(model, cfg.init, cfg.model, cfg.run_dir, world, write)
    return model


def _blank_model(cfg: RunConfig, numbers: CommonNumbers) -> Encoder:
    normalisation = training_normalisation(cfg.data.audio_mean, cfg.data.audio_std)
    if isinstance(cfg, FinetuneConfig) and isinstance(numbers, FinetuneNumbers):
        return CLASSIFIERS[cfg.classifier.model](cfg.model, numbers.classes, normalisation)
    return CAVMAE(cfg.model, normalisation)


def build_engine(cfg: RunConfig, numbers: CommonNumbers, model: Any, world: World) -> Any:
    """Wrap a freshly initialised model: frozen leftovers, optimizer, schedule, ZeRO. Returns a DeepSpeedEngine."""
    import deepspeed

    freeze_unused(model, cfg)
    batch = cfg.train.global_batch
    rate_of = all_alike
    if isinstance(cfg, FinetuneConfig):
        rate_of = partial(classifier_rate, cfg=cfg.classifier, model=cfg.model)
    peak = cfg.optim.peak_learning_rate(batch)
    optimizer = build_optimizer(model.named_parameters(), cfg.optim, peak, world.device, rate_of)
    share = partial(
        learning_rate_share,
        cfg=cfg.optim, total_steps=numbers.total_steps, steps_per_epoch=numbers.steps_per_epoch, global_batch=batch,
    )  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=model.to(world.device),
        optimizer=optimizer,
        config=engine_config(cfg, numbers),
        lr_scheduler=lambda built: LambdaLR(built, share),
        dist_init_required=False,
    )
    if engine.zero_optimization_stage() == 0:
        _may_overflow(engine.optimizer)
    if isinstance(optimizer, LayerwiseOptimizer):
        optimizer.adopt(find_partitions(engine, world))
    if engine.zero_optimization_stage() == 3 and cfg.model.decoder_chunk:
        for parameter in model.decoder_parameters():  # whole for as long as chunks run, and when their gradients arrive
            deepspeed.zero.register_external_parameter(model.decoder_chunks, parameter)
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

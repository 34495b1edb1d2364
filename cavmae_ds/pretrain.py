"""Pretraining: the loop on one screen, and the command that starts it (`deepspeed launch/pretrain.py RUN.yaml`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from cavmae_ds import checkpoint
from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.config.load import to_yaml
from cavmae_ds.data.front_end import FrontEnd, ahead
from cavmae_ds.data.normalise import training_normalisation
from cavmae_ds.data.order import EpochShape
from cavmae_ds.data.stream import ClipStream, micro_batches, training_loader
from cavmae_ds.distributed import World, close_world, gather_rows, open_world
from cavmae_ds.engine import build_engine
from cavmae_ds.losses import Gathered, own_candidates, pretrain_losses
from cavmae_ds.model.cavmae import CAVMAE, PretrainOutput
from cavmae_ds.model.masking import draw_plans
from cavmae_ds.monitor import Monitor
from cavmae_ds.validate import Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a training loop uses, built once."""

    cfg: RunConfig
    numbers: RunNumbers
    world: World
    engine: Any
    front_end: FrontEnd
    loader: DataLoader
    monitor: Monitor
    validation: Validation | None
    start: int  # optimizer steps already done


def pretrain(cfg: RunConfig, numbers: RunNumbers) -> None:
    """Train from the newest checkpoint in the run folder, or from the start, to the end of the run."""
    with open_run(cfg, numbers) as run:
        step = run.start
        batches = run.monitor.timed(micro_batches(run.loader) if step < run.numbers.total_steps else ())
        for audio, images, keys, batch in ahead(batches, run.front_end):
            plans = draw_plans(cfg.model, cfg.mask, cfg.train.seed, *keys)
            output = run.engine(
                audio, images, plans, mae=cfg.loss.mae_weight > 0, contrastive=cfg.loss.contrastive_weight > 0
            )
            losses = pretrain_losses(output, compared_rows(output, cfg, run.world), cfg.loss, cfg.contrastive)
            run.engine.backward(losses.total)
            boundary = run.engine.is_gradient_accumulation_boundary()  # ask first: step() moves the counter
            run.engine.step()
            run.monitor.add(losses, batch)
            if boundary:
                step += 1
                run.monitor.step_done(step, run.engine.get_global_grad_norm(), output)
                run.monitor.validate(step, run.validation)
                if step % cfg.checkpoint.every_steps == 0 or step == run.numbers.total_steps:
                    checkpoint.save(run.engine, cfg, run.numbers, run.world, step)
                if step == run.numbers.total_steps:
                    break


@contextmanager
def open_run(cfg: RunConfig, numbers: RunNumbers) -> Iterator[Run]:
    """Process group, weights, engine, checkpoint, clips, curves; closed in reverse."""
    world = open_world()
    try:
        torch.manual_seed(cfg.train.seed)
        model = CAVMAE(cfg.model, training_normalisation(cfg.data.audio_mean, cfg.data.audio_std))
        engine = build_engine(cfg, numbers, model, world)
        start = checkpoint.resume(engine, cfg, numbers, world)
        if world.is_first:
            cfg.run_dir.mkdir(parents=True, exist_ok=True)
            (cfg.run_dir / "config.yaml").write_text(to_yaml(cfg))
        loader = open_loader(cfg, numbers, world, start)
        front_end = FrontEnd(cfg.model, world.device)
        validation = Validation(cfg, world, engine, front_end) if cfg.monitor.validate_every else None
        monitor = Monitor(cfg, numbers, world, start)
        try:
            yield Run(cfg, numbers, world, engine, front_end, loader, monitor, validation, start)
        finally:
            monitor.close()
    finally:
        close_world()


def open_loader(cfg: RunConfig, numbers: RunNumbers, world: World, start: int) -> DataLoader:
    """This rank's micro-batches from optimizer step `start` on, without end."""
    ranks_per_host = world.size // world.hosts
    shape = EpochShape(world.hosts, ranks_per_host, numbers.accumulation, cfg.train.micro_batch)
    host = world.rank // ranks_per_host
    clips = ClipStream(cfg.data, shape, host=host, local_rank=world.local_rank, seed=cfg.train.seed, first_step=start)
    return training_loader(clips, cfg.data, world.device)


def compared_rows(output: PretrainOutput, cfg: RunConfig, world: World) -> Gathered | None:
    """The unit rows that this rank's clips are compared with: every rank's, or its own."""
    if output.audio_pooled is None or output.image_pooled is None:
        return None
    own = own_candidates(output)  # [B, D] each
    if cfg.contrastive.negatives == "rank" or world.size == 1:
        return own
    # Direction v2a compares with sounds only: the other side stays at home.
    images = None
    if cfg.contrastive.direction == "both" and own.image_all is not None:
        images = gather_rows(own.image_all)
    return Gathered(gather_rows(own.audio_all), images, first_row=world.rank * len(own.audio_all))

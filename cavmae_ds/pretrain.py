"""Pretraining: the loop on one screen, and the command that starts it (`deepspeed launch/pretrain.py RUN.yaml`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from cavmae_ds.checkpoint.runs import Checkpoints
from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.config.load import to_yaml
from cavmae_ds.data.front_end import FrontEnd, ahead
from cavmae_ds.data.order import EpochShape
from cavmae_ds.data.stream import ClipStream, micro_batches, training_loader
from cavmae_ds.distributed import World, close_world, open_world
from cavmae_ds.ema import RunningMean, WeightAverage
from cavmae_ds.engine import build_engine, build_model
from cavmae_ds.monitor.monitor import Monitor
from cavmae_ds.step import TrainingStep
from cavmae_ds.validate import Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a training loop uses, built once."""

    world: World
    engine: Any
    means: list[RunningMean]
    front_end: FrontEnd
    training_step: TrainingStep
    loader: DataLoader
    monitor: Monitor
    validation: Validation | None
    checkpoints: Checkpoints
    start: int  # optimizer steps already done


def pretrain(cfg: RunConfig, numbers: RunNumbers) -> None:
    """Train from the newest checkpoint in the run folder, or from the start, to the end of the run."""
    with open_run(cfg, numbers) as run:
        ready = ahead(run.monitor.timed(micro_batches(run.loader)), run.front_end)
        for step in range(run.start + 1, numbers.total_steps + 1):
            done = run.training_step(islice(ready, numbers.accumulation))
            for mean in run.means:
                mean.update(step)
            run.monitor.step_done(step, done)
            run.monitor.validate(step, run.validation)
            if run.checkpoints.due(step):
                run.checkpoints.save(step)
        run.checkpoints.save_and_wait(numbers.total_steps)


@contextmanager
def open_run(cfg: RunConfig, numbers: RunNumbers) -> Iterator[Run]:
    """Process group, weights, engine, checkpoint, clips, curves; closed in reverse."""
    world = open_world()
    try:
        engine = build_engine(cfg, numbers, build_model(cfg, numbers, world), world)
        horizon = cfg.train.ema_clips
        means: list[RunningMean] = [WeightAverage(engine, world, horizon, cfg.train.global_batch)] if horizon else []
        checkpoints = Checkpoints(cfg, numbers, world, engine, means)
        start = checkpoints.resume()
        if world.is_first:
            cfg.run_dir.mkdir(parents=True, exist_ok=True)
            (cfg.run_dir / "config.yaml").write_text(to_yaml(cfg))
        loader = open_loader(cfg, numbers, world, start)
        front_end = FrontEnd(cfg.model, world.device)
        training_step = TrainingStep(cfg, numbers.accumulation, world, engine, front_end)
        validating = cfg.monitor.validate_every or cfg.monitor.probe_every
        validation = Validation(cfg, numbers.total_steps, world, engine, front_end) if validating else None
        monitor = Monitor(cfg, numbers, world, start, engine)
        try:
            yield Run(world, engine, means, front_end, training_step, loader, monitor, validation, checkpoints, start)
        finally:
            checkpoints.close()
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

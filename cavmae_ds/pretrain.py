"""Pretraining: the loop on one screen, and the command that starts it (`deepspeed launch/pretrain.py RUN.yaml`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from cavmae_ds.ema import WeightAverage
from cavmae_ds.engine import build_engine, build_model
from cavmae_ds.monitor.monitor import Monitor
from cavmae_ds.step import TrainingStep
from cavmae_ds.survival.agreement import Agreement
from cavmae_ds.survival.leaving import StoppedEarly
from cavmae_ds.survival.signals import StopRequests, described
from cavmae_ds.survival.watch import Watch, watching
from cavmae_ds.validate import Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a training loop uses, built once."""

    world: World
    watch: Watch
    agreement: Agreement
    engine: Any
    ema: WeightAverage | None
    front_end: FrontEnd
    training_step: TrainingStep
    loader: DataLoader
    monitor: Monitor
    validation: Validation | None
    checkpoints: Checkpoints
    start: int  # optimizer steps already done


def pretrain(cfg: RunConfig, numbers: RunNumbers, stop: StopRequests) -> None:
    """Train from the newest checkpoint in the run folder, or from the start, to the end of the run.

    Raises StoppedEarly, with everything saved, when any rank was asked to stop.
    """
    with open_run(cfg, numbers) as run:
        stopped = train(run, numbers, stop)
    if stopped:
        raise StoppedEarly(f"{stopped}; everything is saved, the same command goes on from there")


def train(run: Run, numbers: RunNumbers, stop: StopRequests) -> str:
    """The loop; returns when and why it was left early, or an empty string."""
    batches = run.watch.batches(micro_batches(run.loader))
    ready = ahead(run.monitor.timed(batches), run.front_end)
    for step in range(run.start + 1, numbers.total_steps + 1):
        done = run.training_step(islice(ready, numbers.accumulation))
        if run.ema:
            run.ema.update()
        run.watch.at(step, "monitoring")
        run.monitor.step_done(step, done)
        run.monitor.validate(step, run.validation)
        run.watch.at(step, "saving")
        agreed = run.agreement.exchange({"stop": stop.reason, "save": run.checkpoints.overdue()})
        reason = agreed["stop"]
        if reason and step < numbers.total_steps:
            run.checkpoints.save_and_wait(step, last=False)
            return f"stopped after step {step} because of {described(reason)}"
        if run.checkpoints.due(step, overdue=bool(agreed["save"])):
            run.checkpoints.save(step)
    run.checkpoints.save_and_wait(numbers.total_steps)
    return ""


@contextmanager
def open_run(cfg: RunConfig, numbers: RunNumbers) -> Iterator[Run]:
    """Process group, watch, weights, engine, checkpoint, clips, curves; closed in reverse.

    Not so after an error: other ranks may be gone, and with them whatever would be waited for.
    """
    world = open_world(cfg.watch.collective_timeout_s)
    with ExitStack() as closing, watching(cfg.watch, world, cfg.run_dir / "stacks") as watch:
        agreement = Agreement()
        engine = build_engine(cfg, numbers, build_model(cfg, numbers, world), world)
        horizon = cfg.train.ema_clips
        ema = WeightAverage(engine, world, horizon, cfg.train.global_batch) if horizon else None
        checkpoints = Checkpoints(cfg, numbers, world, engine, ema)
        closing.callback(checkpoints.close)  # after an error only when the others have been told of it
        start = checkpoints.resume()
        if world.is_first:
            cfg.run_dir.mkdir(parents=True, exist_ok=True)
            (cfg.run_dir / "config.yaml").write_text(to_yaml(cfg))
        loader = open_loader(cfg, numbers, world, start)
        front_end = FrontEnd(cfg.model, world.device)
        training_step = TrainingStep(cfg, numbers.accumulation, world, engine, front_end)
        validating = cfg.monitor.validate_every or cfg.monitor.probe_every
        validation = Validation(cfg, world, engine, front_end) if validating else None
        monitor = Monitor(cfg, numbers, world, start, engine, checkpoints.finished)
        try:
            yield Run(
                world, watch, agreement, engine, ema, front_end, training_step, loader, monitor, validation,
                checkpoints, start,
            )  # fmt: skip
        finally:
            monitor.close()
        checkpoints.close()
        agreement.close()
    close_world()


def open_loader(cfg: RunConfig, numbers: RunNumbers, world: World, start: int) -> DataLoader:
    """This rank's micro-batches from optimizer step `start` on, without end."""
    ranks_per_host = world.size // world.hosts
    shape = EpochShape(world.hosts, ranks_per_host, numbers.accumulation, cfg.train.micro_batch)
    host = world.rank // ranks_per_host
    clips = ClipStream(cfg.data, shape, host=host, local_rank=world.local_rank, seed=cfg.train.seed, first_step=start)
    return training_loader(clips, cfg.data, world.device)

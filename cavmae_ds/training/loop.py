"""The training loop, on one screen, the same for all tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from cavmae_ds.checkpoint.locking import locked_run
from cavmae_ds.checkpoint.runs import Checkpoints
from cavmae_ds.config.history import write_config
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.handover import check_loading, check_open_files, micro_batches
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.stream import ClipStream, training_loader
from cavmae_ds.data.transforms.front_end import ahead
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.fault_tolerance.async_flags import Agreement, refuse_together
from cavmae_ds.fault_tolerance.exit import StoppedEarly
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch, watching
from cavmae_ds.fault_tolerance.signals import StopRequests, described
from cavmae_ds.monitor.monitor import Monitor
from cavmae_ds.monitor.start_end import end_line, start_line
from cavmae_ds.tasks.run_plan import RunPlan
from cavmae_ds.tasks.task import Task
from cavmae_ds.training.anomalies import Guard
from cavmae_ds.training.ema import WeightAverage
from cavmae_ds.training.engine import build_engine, build_model, leave_out
from cavmae_ds.training.optim.schedule import learning_rate_share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything the loop uses, built once."""

    world: World
    watch: Watch
    agreement: Agreement
    engine: Any
    means: list[RunningMean]
    task: Task
    loader: DataLoader
    monitor: Monitor
    guard: Guard
    checkpoints: Checkpoints
    start: int  # optimizer steps already done


def train(task: Task, stop: StopRequests) -> None:
    """From the newest checkpoint in the run folder, or from the start, to the end of the run.

    Raises StoppedEarly, with everything saved, when any rank was asked to stop.
    """
    with open_run(task) as run:
        stopped = _steps(run, task.plan, stop)
        if not stopped:
            task.at_end(run.start, run.watch)
    if stopped:
        raise StoppedEarly(f"{stopped}; everything is saved, the same command goes on from there")
    log.info(end_line(task))


def _steps(run: Run, numbers: RunPlan, stop: StopRequests) -> str:
    """The loop; returns when and why it was left early, or an empty string."""
    batches = run.watch.batches(micro_batches(run.loader))
    ready = ahead(run.monitor.timed(batches), run.task.front_end)
    for step in range(run.start + 1, numbers.total_steps + 1):
        left_out = run.checkpoints.rewinds.leaves_out(step)
        leave_out(run.engine, left_out)
        done = run.task.training_step(islice(ready, numbers.accumulation))
        for mean in run.means:
            mean.update(step, done.skipped)
        run.watch.at(step, "monitoring")
        run.monitor.step_done(step, done)
        if left_out:
            run.guard.left_out(step)
        else:
            run.guard.step_done(step, done)
        run.monitor.validate(step)
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
def open_run(task: Task) -> Iterator[Run]:
    """Process group, watch, weights, engine, checkpoint, clips, curves; closed in reverse.

    Not so after an error: other ranks may be gone, and with them whatever would be waited for.
    """
    cfg, numbers = task.cfg, task.plan
    check_open_files(numbers.ranks, cfg.data.workers)
    world = open_world(cfg.watch.collective_timeout_s, watched=True)
    with ExitStack() as closing, watching(cfg.watch, world, cfg.run_dir / "stacks") as watch:
        lease = closing.enter_context(locked_run(cfg, world, watch))  # before anything is written
        agreement = Agreement()
        refuse_together(partial(check_host, task, world), world)
        engine = build_engine(task, build_model(task, world), world)
        means = running_means(task, engine, world)
        checkpoints = Checkpoints(cfg, numbers, world, engine, means, lease)
        closing.callback(checkpoints.close)  # after an error only when the others have been told of it
        start = checkpoints.resume()
        if world.is_first:
            write_config(cfg, start)
        log.info(start_line(cfg, numbers, start))
        task.start(world, engine)
        loader = open_loader(cfg, task.inputs, numbers, world, start, task.mixup)
        monitor = Monitor(task, world, start, engine, partial(_learning_rate, task), checkpoints.finished)
        try:
            monitor.settings_changed(start, checkpoints.resumption.changes)
            guard = Guard(cfg, world, monitor, checkpoints, engine.skipped_steps)
            yield Run(world, watch, agreement, engine, means, task, loader, monitor, guard, checkpoints, start)
        finally:
            monitor.close()
        checkpoints.close()
        agreement.close()
    close_world()


def check_host(task: Task, world: World) -> None:
    """Before anything is made that is shared or takes long. Raises ConfigError as check_loading does."""
    cfg = task.cfg
    check_loading(world.size // world.hosts, cfg.data.workers, cfg.train.micro_batch, task.inputs)


def open_loader(
    cfg: RunConfig, inputs: InputSpec, numbers: RunPlan, world: World, start: int, mixup: float = 0.0
) -> DataLoader:
    """This rank's micro-batches from optimizer step `start` on, without end."""
    ranks_per_host = world.size // world.hosts
    shape = EpochShape(world.hosts, ranks_per_host, numbers.accumulation, cfg.train.micro_batch)
    host, seed = world.rank // ranks_per_host, cfg.train.seed
    clips = ClipStream(
        cfg.data, inputs, shape, host=host, local_rank=world.local_rank, seed=seed, first_step=start, mixup=mixup
    )
    return training_loader(clips, cfg.data, world.device)


def running_means(task: Task, engine: Any, world: World) -> list[RunningMean]:
    """Those that a run keeps."""
    train = task.cfg.train
    ema = [WeightAverage(engine, world, train.ema_clips, train.global_batch)] if train.ema_clips else []
    return [*ema, *task.weight_means(engine, world)]


def _learning_rate(task: Task, step: int) -> float:
    """What optimizer step `step` (1-based) uses."""
    plan = task.plan
    share = learning_rate_share(step - 1, task.cfg.optim, plan.total_steps, plan.steps_per_epoch, plan.global_batch)
    return plan.peak_learning_rate * share

"""The line that a run begins with, and the one it ends with: what it is, where to look, what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.tasks.run_plan import RunPlan
from cavmae_ds.tasks.task import Task

HELD_OUT = "HELD_OUT_SHARDS"
"""Stands for a data set where the run names none that it was not trained on."""


def start_line(script: str, run_dir: Path, numbers: RunPlan, start: int) -> str:
    """For the log of the first rank, before the first step. script: RunConfig.script; start: optimizer steps done."""
    ranks = "1 rank" if numbers.ranks == 1 else f"{numbers.ranks:,} ranks"
    steps = f"steps {start + 1:,} to {numbers.total_steps:,} of {numbers.global_batch:,} clips"
    return (
        f"{Path(script).stem}: {run_dir}: {numbers.clips:,} clips, {ranks}, {numbers.parameters:,} parameters, "
        f"{steps if start < numbers.total_steps else f'all {numbers.total_steps:,} steps are done'}; "
        f"curves: {shlex.join(['tensorboard', '--logdir', str(run_dir)])} (tab custom scalars)"
    )


def end_line(task: Task) -> str:
    """For the log of the first rank, when all is saved."""
    cfg = task.cfg
    whole = whole_checkpoints(cfg.run_dir)
    checkpoint = whole[-1] if whole else cfg.checkpoint.address
    names = {"run_dir": str(cfg.run_dir), "data": cfg.data.validation or HELD_OUT}
    commands = [
        shlex.join(word.format(**names) for word in command.split())
        for command in ("cavmae report {run_dir}", *task.next_commands())
    ]
    return "\n  ".join([f"{Path(cfg.script).stem}: done: {checkpoint}; next:", *commands])

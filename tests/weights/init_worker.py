"""Started on every rank: a model made in shards takes the weights of an official file, for both kinds of run."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.distributed.collectives import barrier
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.tasks.run_plan import RunPlan
from cavmae_ds.tasks.task import Task
from cavmae_ds.training.engine import build_engine, build_model
from tests.training.gathered import full_weights
from tests.training.optim_problem import numbers
from tests.weights.small_models import SIZES


def sections(official: Path, run_dir: Path) -> dict[str, Any]:
    """What both kinds of run share."""
    return {
        "run_dir": str(run_dir),
        "ds_config": "ds_configs/zero3.json",
        "init": {"from_checkpoint": str(official)},
        "model": SIZES.model_dump(mode="json"),
        "train": {"global_batch": 8, "micro_batch": 4, "epochs": 1, "precision": "fp32"},
    }


def started(task: Task, world: World) -> dict[str, Tensor]:
    engine = build_engine(task, build_model(task, world), world)
    weights = full_weights(engine, world)
    engine.destroy()
    return weights


def main() -> None:
    world, folder = open_world(), Path(sys.argv[-1])
    shared, counts = sections(folder / "official.pth", folder / "run"), numbers(world.size)
    common = {field.name: getattr(counts, field.name) for field in fields(RunPlan)}
    names = tuple("abcde")
    results = {
        "pretrain": started(Pretraining(validate_run(shared), counts), world),
        "finetune": started(
            Finetuning(
                validate_run(shared | {"classifier": {}}, "finetune"),
                FinetunePlan(**common, classes=5, class_names=names),
            ),
            world,
        ),
    }
    if world.is_first:
        torch.save(results, folder / "results.pt")
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # see tests/training/whole_batch_worker.py


if __name__ == "__main__":
    main()

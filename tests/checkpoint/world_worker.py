"""Started on every rank: trains and saves in one world, or resumes, saves again and trains on in another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.checkpoint.runs import Checkpoints
from cavmae_ds.distributed.collectives import barrier
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.training.ema import WeightAverage
from cavmae_ds.training.engine import build_engine
from tests.training.gathered import full_means, full_weights
from tests.training.optim_problem import CLIPS, HORIZON_CLIPS, STEPS, Layers, gradients, numbers, run_config

SAVED_AT = STEPS // 2


class Cell(NamedTuple):
    """A run that goes from one ZeRO stage to another."""

    optimizer: str
    precision: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """Of its folders and results."""
        return "-".join(self)


CELLS = [
    Cell("adamw", "fp32", "zero0", "zero3_offload"),
    Cell("adam", "bf16", "zero1", "zero2"),
    Cell("adamw", "bf16", "zero3", "zero1"),
    Cell("lion", "fp32", "zero1", "zero0"),
    Cell("lamb", "fp32", "zero2", "zero3"),
    Cell("lars", "fp32", "zero3_offload", "zero2"),
    Cell("adamw", "fp32", "zero2_offload", "zero1_round_robin"),
]
STAGES = {
    "zero2_offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero1_round_robin": {"stage": 1, "round_robin_gradients": True},
}
"""Beside those of ds_configs."""


def computed_with(engine: Any) -> dict[str, Tensor]:
    """The parameters that the model computes with, whole, in the run's precision."""
    import deepspeed

    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().clone()
    return found


def run(cell: Cell, folder: Path, world: World, what: str) -> dict[str, Any]:
    """The first half and a save ("saved"), or a resume and a save again ("resumed"); then to the end."""
    fragment = cell.before if what == "saved" else cell.after
    others = {"run_dir": str(folder / what / cell.name)}
    if fragment in STAGES:
        others["ds_config"] = str(folder / f"{fragment}.json")
    cfg = run_config(world.size, cell.optimizer, fragment, cell.precision, **others)
    model = Layers()
    model.register_buffer("batches", torch.zeros((), dtype=torch.int64))
    model.register_buffer("running_mean", torch.zeros(3, 2))
    model.register_buffer("scratch", torch.zeros(5), persistent=False)
    if what == "saved":  # from elsewhere: a fresh model does not have it
        model.frozen.data += 1
        model.batches += 2**40 + 1
        model.running_mean += torch.arange(6.0).view(3, 2)
    engine = build_engine(Pretraining(cfg, numbers(world.size)), model, world)
    ema = WeightAverage(engine, world, HORIZON_CLIPS, CLIPS)
    checkpoints = Checkpoints(cfg, numbers(world.size), world, engine, [ema])
    start = checkpoints.resume()
    found: dict[str, Any] = {"start": start}
    for step in range(start, STEPS + 1):
        if step == SAVED_AT:
            checkpoints.save(step)
            checkpoints.save_and_wait(step)
            found |= {"saved": full_weights(engine, world), "computed": computed_with(engine)}
            found["buffers"] = {name: getattr(engine.module, name).clone() for name in ("batches", "running_mean")}
        if step < STEPS:
            engine.backward(engine(gradients(step, world.rank, world.size)))
            engine.step()
            ema.update(step + 1)
    found |= {"weights": full_weights(engine, world), "means": full_means(engine, ema, world)}
    checkpoints.close()
    engine.destroy()
    return found


def main() -> None:
    world = open_world()
    folder, what = Path(sys.argv[-2]), sys.argv[-1]
    results = {cell.name: run(cell, folder, world, what) for cell in CELLS}
    if world.is_first:
        torch.save(results, folder / f"{what}.pt")
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # see tests/training/whole_batch_worker.py


if __name__ == "__main__":
    main()

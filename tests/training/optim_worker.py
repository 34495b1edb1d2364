"""Run by every rank: each optimizer at each ZeRO stage, and the running mean."""

from __future__ import annotations

import math
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.checkpoint.runs import Checkpoints
from cavmae_ds.distributed.collectives import barrier
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.training.ema import WeightAverage
from cavmae_ds.training.engine import build_engine
from tests.training.gathered import full_means, full_weights
from tests.training.optim_problem import CLIPS, HORIZON_CLIPS, STEPS, Layers, gradients, numbers, run_config

TRAINED = [
    *product(("lamb", "lars"), ("zero0", "zero1", "zero2", "zero3", "zero3_offload")),
    # Element by element: to these a slice is as good as a layer.
    *product(("adamw", "adam", "lion"), ("zero2", "zero3_offload")),
]
AVERAGED = [("zero0", "fp32"), *product(("zero1", "zero2", "zero3"), ("fp32", "bf16"))]


def fresh_engine(cfg: PretrainConfig, world: World) -> Any:
    return build_engine(Pretraining(cfg, numbers(world.size)), Layers(), world)


def train_step(engine: Any, world: World, step: int) -> None:
    engine.backward(engine(gradients(step, world.rank, world.size)))
    engine.step()


def trained(name: str, fragment: str, world: World) -> dict[str, Tensor]:
    engine = fresh_engine(run_config(world.size, name, fragment), world)
    for step in range(STEPS):
        train_step(engine, world, step)
    weights = full_weights(engine, world)
    engine.destroy()
    return weights


def averaged(fragment: str, precision: str, folder: Path, world: World) -> dict[str, dict[str, Tensor]]:
    """The mean as it came out, as one process would have kept it, and after a stop and a resume in the middle."""
    run_dir = str(folder / f"{fragment}-{precision}")
    cfg = run_config(world.size, "adamw", fragment, precision, run_dir=run_dir)
    engine = fresh_engine(cfg, world)
    ema = WeightAverage(engine, world, HORIZON_CLIPS, CLIPS)
    checkpoints = Checkpoints(cfg, numbers(world.size), world, engine, [ema])
    checkpoints.resume()
    plain = full_weights(engine, world)
    decay = math.exp(-CLIPS / HORIZON_CLIPS)
    for step in range(STEPS):
        train_step(engine, world, step)
        ema.update(step + 1)
        for name, weight in full_weights(engine, world).items():
            plain[name] = decay * plain[name] + (1 - decay) * weight
        if step == STEPS // 2 - 1:
            checkpoints.save_and_wait(step + 1)
    result = {"mean": full_means(engine, ema, world), "plain": plain, "weights": full_weights(engine, world)}
    engine.destroy()

    engine = fresh_engine(cfg, world)
    ema = WeightAverage(engine, world, HORIZON_CLIPS, CLIPS)
    checkpoints = Checkpoints(cfg, numbers(world.size), world, engine, [ema])
    for step in range(checkpoints.resume(), STEPS):
        train_step(engine, world, step)
        ema.update(step + 1)
    result |= {"resumed mean": full_means(engine, ema, world), "resumed weights": full_weights(engine, world)}
    engine.destroy()
    return result


def main() -> None:
    world = open_world()
    folder = Path(sys.argv[-1])
    results = {f"{name}-{fragment}": trained(name, fragment, world) for name, fragment in TRAINED}
    means = {
        f"{fragment}-{precision}": averaged(fragment, precision, folder, world) for fragment, precision in AVERAGED
    }
    if world.is_first:
        torch.save({"trained": results, "averaged": means}, folder / "results.pt")
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that tears many engines down (see whole_batch_worker.py)


if __name__ == "__main__":
    main()

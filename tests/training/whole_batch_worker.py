"""Run by every rank: trains the small problem in all the cells that it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.data.transforms.front_end import FrontEnd, ahead
from cavmae_ds.distributed.collectives import barrier, mean_over_ranks
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.tasks.pretrain.losses import term_names
from cavmae_ds.tasks.pretrain.step import TrainingStep
from cavmae_ds.tasks.pretrain.task import Pretraining, masked_forward
from cavmae_ds.training.engine import build_engine, build_model
from tests.training.compared import compare_everywhere
from tests.training.gathered import full_weights
from tests.training.whole_batch import CLIPS, STEPS, Cell, clips

TARGETS = "audio", "image"


def train(world: World, cell: Cell) -> dict[str, Any]:
    """Losses [STEPS, 7] and gradient norms [STEPS], means over ranks, and the final parameters on the first rank."""
    cfg = cell.config()
    engine = build_engine(Pretraining(cfg, cell.numbers()), build_model(Pretraining(cfg, cell.numbers()), world), world)
    front_end = FrontEnd(inputs(cfg.model), world.device)
    training_step = TrainingStep(masked_forward(cfg), cfg.contrastive, cell.accumulation, world, engine, front_end)
    losses, norms = [], []
    each = CLIPS // world.size // cell.accumulation
    for step in range(STEPS):
        firsts = [(part * world.size + world.rank) * each for part in range(cell.accumulation)]
        done = training_step(ahead((clips(step, slice(first, first + each)) for first in firsts), front_end))
        measured = dict(zip(term_names(TARGETS, cfg.contrastive.direction), mean_over_ranks(done.metrics), strict=True))
        losses.append(torch.stack([measured.get(name, torch.zeros(())) for name in term_names(TARGETS, "both")]))
        norms.append(float(done.grad_norm))
    parameters = full_weights(engine, world)  # what a checkpoint would hold
    engine.destroy()
    return {"losses": torch.stack(losses), "norms": norms, "parameters": parameters}


def main() -> None:
    world = open_world()
    folder = Path(sys.argv[-1])
    cells = [Cell(*values) for values in json.loads((folder / "cells.json").read_text())]
    results: dict[str, Any] = {"compared": compare_everywhere(world)}
    for cell in cells:
        results[cell.name] = train(world, cell)
    if world.is_first:
        torch.save(results, folder / "results.pt")
    barrier()
    close_world()
    # Many engines lived in this process, and gloo's threads now and then abort a process that tears down so many
    # ("terminate called without an active exception", after all is saved): leave without it.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

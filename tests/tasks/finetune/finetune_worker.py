"""Run by every rank: finetunes in all the ways that it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.data.transforms.front_end import ahead
from cavmae_ds.distributed.collectives import barrier, mean_over_ranks
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.tasks.finetune.step import FinetuneStep
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.training.engine import build_engine, build_model
from tests.tasks.finetune.finetune_problem import CLIPS, STEPS, Way, clips
from tests.training.gathered import full_weights


def finetuned(world: World, way: Way) -> dict[str, Any]:
    """Losses [STEPS], means over ranks, and the final parameters on the first rank."""
    cfg, front_end = way.config(), way.front_end()
    engine = build_engine(Finetuning(cfg, way.numbers()), build_model(Finetuning(cfg, way.numbers()), world), world)
    finetune_step = FinetuneStep(cfg.loss, engine, mode=cfg.classifier.mode)
    each, losses = CLIPS // world.size // way.accumulation, []
    for step in range(STEPS):
        firsts = [(part * world.size + world.rank) * each for part in range(way.accumulation)]
        done = finetune_step(ahead((clips(step, slice(first, first + each)) for first in firsts), front_end))
        losses.append(mean_over_ranks(done.loss))
    parameters = full_weights(engine, world)
    engine.destroy()
    return {"losses": torch.stack(losses), "parameters": parameters}


def main() -> None:
    world = open_world()
    folder = Path(sys.argv[-1])
    ways = [Way(*values) for values in json.loads((folder / "ways.json").read_text())]
    results = [finetuned(world, way) for way in ways]
    if world.is_first:
        torch.save(results, folder / "results.pt")
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that tears many engines down (see whole_batch_worker.py)


if __name__ == "__main__":
    main()

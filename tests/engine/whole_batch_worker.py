"""Started on every rank by the deepspeed launcher: trains the small problem in all its variants."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.checkpoint import full_weights
from cavmae_ds.distributed import World, barrier, close_world, mean_over_ranks, open_world
from cavmae_ds.engine import build_engine
from cavmae_ds.losses import pretrain_losses
from cavmae_ds.model.masking import draw_plans
from cavmae_ds.pretrain import compared_rows
from tests.engine.whole_batch import STEPS, clips, fresh_model, numbers, run_config

VARIANTS = {
    # name: (accumulation, contrastive weight, direction). Negatives span a micro-batch of all ranks, so the contrastive
    # loss is that of the whole batch only without accumulation.
    "mae": (1, 0.0, "v2a"),
    "mae-accumulated": (2, 0.0, "v2a"),
    "global-negatives": (1, 0.1, "v2a"),
    "global-negatives-both": (1, 0.1, "both"),
}


def train(world: World, stage: int, accumulation: int, contrastive: float, direction: str) -> dict:
    cfg = run_config(stage, world.size, accumulation, contrastive, direction)
    engine = build_engine(cfg, numbers(cfg, world.size), fresh_model(cfg), world)
    micro, losses = cfg.train.micro_batch, []
    for step in range(STEPS):
        audio, images, index = clips(step)
        terms = torch.zeros(5, dtype=torch.float64)
        for part in range(accumulation):
            first = (part * world.size + world.rank) * micro
            rows = slice(first, first + micro)
            plans = draw_plans(cfg.model, cfg.mask, cfg.train.seed, 0, index[rows])
            output = engine(audio[rows], images[rows], plans, contrastive=contrastive > 0)
            part_losses = pretrain_losses(output, compared_rows(output, cfg, world), cfg.loss, cfg.contrastive)
            engine.backward(part_losses.total)
            engine.step()
            terms += torch.stack([term.detach().double() for term in part_losses]) / accumulation
        losses.append(mean_over_ranks(terms).tolist())
    parameters = full_weights(engine, world)  # what a checkpoint would hold
    engine.destroy()
    return {"losses": losses, "parameters": parameters}


def main() -> None:
    world = open_world()
    folder = Path(sys.argv[-1])
    for stage in (1, 2, 3):
        for name, variant in VARIANTS.items():
            if variant[0] * world.size <= 8:
                result = train(world, stage, *variant)
                if world.is_first:
                    torch.save(result, folder / f"{name}-zero{stage}-ranks{world.size}.pt")
    barrier()
    close_world()
    # Twelve engines lived in this process, and gloo's threads now and then abort a process that tears down so many
    # ("terminate called without an active exception", after all is saved): leave without it.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

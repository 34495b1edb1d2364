"""Run by every rank: a step in which one clip is not finite, beside the same run without that step's update."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.checkpoint.engine_state import EngineState
from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.transforms.front_end import FrontEnd, ahead
from cavmae_ds.distributed.collectives import barrier, from_all_ranks
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.tasks.finetune.step import FinetuneStep
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.tasks.finite_check import Evidence
from cavmae_ds.tasks.pretrain.step import TrainingStep
from cavmae_ds.tasks.pretrain.task import Pretraining, masked_forward
from cavmae_ds.tasks.task import StepOutput
from cavmae_ds.training.ema import WeightAverage
from cavmae_ds.training.engine import back_propagate, build_engine, build_model, take_step
from tests.training.optim_problem import Layers, gradients, numbers, run_config
from tests.training.whole_batch import CLIPS, Cell, clips

STEPS, WRONG_STEP = 4, 1
WRONG_CLIP = 5 * 1000 + WRONG_STEP
"""In the first micro-batch of the second of two ranks."""
Take = Callable[[int], StepOutput]

CELLS = [
    Cell(2, stage=0, accumulation=2),
    Cell(2, stage=1, accumulation=2, decoder_chunk=3),
    Cell(2, stage=1, accumulation=2, two_pass=True, precision="bf16"),
    Cell(2, stage=2, accumulation=2, direction="both", exchange="ring"),
    Cell(2, stage=2, accumulation=2, precision="bf16"),
    Cell(2, stage=3, accumulation=2, two_pass=True),
    Cell(2, stage=3, accumulation=2, decoder_chunk=3, precision="bf16"),
]
OPTIMIZERS = [
    *((name, "zero0", what) for name, what in (("adam", "gradient"), ("lion", "loss"), ("lamb", "loss"))),
    ("lars", "zero0", "gradient"), ("lars", "zero1", "loss"), ("lamb", "zero2", "gradient"), ("lion", "zero3", "loss"),
    ("adamw", "zero3_offload", "gradient"),
]  # fmt: skip
"""Each optimizer without ZeRO and with it; what is not finite of one rank's step."""


class BrokenSound(FrontEnd):
    """One clip's log-mel is not finite; the int16 sound of shards could not even hold that."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        audio, images = super().__call__(batch)
        audio[batch.clip_index == WRONG_CLIP] = torch.nan
        return audio, images


class Left(NamedTuple):
    """What the steps leave behind on this rank."""

    states: list[dict[str, Tensor]]  # after each step: weights, moments, running mean, the optimizer's count
    skipped: list[bool]
    norms_are_finite: list[bool]
    rates: list[float]
    named: list[list[str]]  # clips and what of them is not finite


def train(world: World, engine: Any, take: Take, leave_out: bool) -> Left:
    """All steps, or all but the wrong one: its turn comes, and no update."""
    mean = WeightAverage(engine, world, horizon_clips=40, global_batch=CLIPS)
    state, left = EngineState(engine, [mean], world), Left([], [], [], [], [])
    for step in range(STEPS):
        if leave_out and step == WRONG_STEP:
            engine.lr_scheduler.step()
        else:
            done = take(step)
            mean.update(step + 1, done.skipped)
            left.skipped.append(done.skipped)
            left.norms_are_finite.append(math.isfinite(done.grad_norm))
            left.named.append([name for one in done.evidence for name in _not_finite(one)])
        # Rounded weights that the model computes with are no part of it: the steps that follow tell.
        counts = {name: torch.tensor(value) for name, value in state.scalars()["optimizer"].items()}
        left.states.append({piece.key: piece.values.clone() for piece in state.pieces()} | counts)
        left.rates.append(engine.basic_optimizer.param_groups[0]["lr"])
    assert engine.skipped_steps == sum(left.skipped)
    return left


def _not_finite(found: Evidence) -> list[str]:
    return [f"{clip} {way}" for way, fine in found.finite.items() for clip in found.clip_index[~fine].tolist()]


def compare(world: World, build: Callable[[], tuple[Any, Take]], clip: str = "") -> dict[str, bool]:
    """What must be true on every rank. clip: the one of the last rank that is not finite, if it is to be named."""
    runs = []
    for leave_out in (False, True):
        engine, take = build()
        runs.append(train(world, engine, take, leave_out))
        engine.destroy()
    wrong, truth = runs
    only = [step == WRONG_STEP for step in range(STEPS)]
    named = wrong.named.pop(WRONG_STEP)
    first = [f"{clip} sound"] if clip and world.rank == world.size - 1 else []
    return {
        "only the wrong step is skipped": wrong.skipped == only,
        "its norm tells it": wrong.norms_are_finite == [not skipped for skipped in only],
        "it changes nothing": _same(wrong.states[WRONG_STEP], wrong.states[WRONG_STEP - 1]),
        "the steps after it are those of a run that left it out": all(map(_same, wrong.states, truth.states)),
        "they move the weights": not wrong.states[-1] or not _same(wrong.states[-1], wrong.states[WRONG_STEP]),
        "all stays finite": all(value.isfinite().all() for value in wrong.states[-1].values()),
        "the learning rate is that of the step": wrong.rates == truth.rates,
        "the clip is named, and first its sound": named[:1] == first,
        "and no other": all(name.split()[0] == clip for name in named) and not any(wrong.named),
    }


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def pretraining(world: World, cell: Cell) -> dict[str, bool]:
    cfg, steps = cell.config(), dataclasses.replace(cell.numbers(), total_steps=STEPS + 1)  # the rate never gets to 0
    front_end = BrokenSound(inputs(cfg.model), world.device)

    def build() -> tuple[Any, Take]:
        engine = build_engine(Pretraining(cfg, steps), build_model(Pretraining(cfg, steps), world), world)
        training_step = TrainingStep(masked_forward(cfg), cfg.contrastive, cell.accumulation, world, engine, front_end)
        return engine, lambda step: training_step(ahead(rank_clips(step, world, cell.accumulation), front_end))

    return compare(world, build, str(WRONG_CLIP))


def finetuning(world: World) -> dict[str, bool]:
    model = Cell(2).config().model.model_dump()
    train = {"epochs": STEPS, "global_batch": CLIPS, "micro_batch": CLIPS // world.size // 2, "precision": "fp32"}
    settings = {"model": model, "train": train, "classifier": {"mode": "multimodal"}}
    cfg = validate_run(settings, "finetune")
    zeros: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(FinetunePlan)}
    steps = FinetunePlan(**zeros | {"accumulation": 2, "total_steps": STEPS + 1, "steps_per_epoch": 1, "classes": 3})
    front_end = BrokenSound(inputs(cfg.model), world.device)

    def build() -> tuple[Any, Take]:
        engine = build_engine(Finetuning(cfg, steps), build_model(Finetuning(cfg, steps), world), world)
        finetune_step = FinetuneStep(cfg.loss, engine, mode=cfg.classifier.mode)
        return engine, lambda step: finetune_step(ahead(rank_clips(step, world, 2), front_end))

    return compare(world, build, str(WRONG_CLIP))


def optimizing(world: World, name: str, fragment: str, what: str) -> dict[str, bool]:
    """what: the gradient of one rank, at one place; or the loss alone, whose formula has finite gradients."""

    def build() -> tuple[Any, Take]:
        engine = build_engine(Pretraining(run_config(world.size, name, fragment), numbers(world.size)), Layers(), world)

        def take(step: int) -> StepOutput:
            given, wrong = gradients(step, world.rank, world.size), step == WRONG_STEP and world.rank == world.size - 1
            if wrong and what == "gradient":
                given["tall"][3, 2] = math.inf
            back_propagate(engine, engine(given) + (math.inf if wrong and what == "loss" else 0))
            norm = take_step(engine)
            return StepOutput(torch.zeros(()), torch.zeros(1), norm, [], not engine.was_step_applied(), [])

        return engine, take

    return compare(world, build)


def rank_clips(step: int, world: World, accumulation: int) -> list[Batch]:
    each = CLIPS // world.size // accumulation
    firsts = [(part * world.size + world.rank) * each for part in range(accumulation)]
    return [clips(step, slice(first, first + each)) for first in firsts]


def main() -> None:
    world = open_world()
    results = {cell.name: pretraining(world, cell) for cell in CELLS}
    results |= {"-".join(one): optimizing(world, *one) for one in OPTIMIZERS}
    results["finetuning"] = finetuning(world)
    everywhere = from_all_ranks(results)
    if world.is_first:
        Path(sys.argv[-1], "results.json").write_text(json.dumps(everywhere))
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that tears many engines down (see whole_batch_worker.py)


if __name__ == "__main__":
    main()

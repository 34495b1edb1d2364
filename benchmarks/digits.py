"""Spoken and handwritten digits: what a small model learns from scratch: python -m benchmarks.digits, half an hour.

Makes the data set (real recordings and handwriting; who speaks is the ink's colour, which digit is the shape), imports
it, pretrains, and follows on clips never seen: retrieval by speaker and by digit, both directions, checkpoint by
checkpoint, and a linear probe of the digit against one of the same model untrained. Then it finetunes three classifiers
of the digit alike, with both modalities, by ear and by eye, and once more with few labels. Writes
benchmarks/results/digits-<ink>-<date>.json and a figure, and prints the tables. All trainings are the real programs;
what is finished in --out is not done again.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml

from benchmarks.digits_data import FEW, MAKER, Ink, prepare
from benchmarks.digits_look import accuracies, follow
from benchmarks.digits_report import floors, tables, write_figure
from benchmarks.digits_runs import CHECKOUT, MODES, changed, finetuning, pretraining, train, without_addresses
from benchmarks.report import commit_of
from benchmarks.turns import machine

STEPS_PER_MINUTE = 300
"""Of pretraining on two CPU cores: what --minutes is turned into, so that a budget means the same work anywhere."""


@dataclass(frozen=True)
class Plan:
    """What all seeds have in common."""

    ink: Ink
    limit: int
    maker: Path
    steps: int
    epochs: int
    ranks: int
    overrides: Mapping[str, Any]
    """Other values in pretraining's run file, by section.key."""


def one_run(plan: Plan, folder: Path, seed: int) -> dict[str, Any]:
    """All of it with one seed: what the tables and the figure are made of."""
    digits = prepare(folder, plan.ink, seed, plan.limit, plan.maker)
    sounds = {"audio_mean": digits.audio_mean, "audio_std": digits.audio_std}
    sections = changed(pretraining({"train": digits.train, **sounds}, plan.steps, seed), plan.overrides)
    spent = {"pretraining": train("pretrain", folder / "run", sections, plan.ranks)}
    found = follow(folder / "run", digits)
    finetuned: dict[str, dict[str, Any]] = {"all": {}, "few": {}}
    for labels, mode in itertools.product(finetuned, MODES):
        shards, passes = digits.train_digit, 1
        if labels == "few":  # as many steps, so more epochs
            shards, passes = digits.train_few, max(1, digits.clips // FEW)
        labelled = {"train": shards, "validation": digits.test_digit, **sounds}
        asked = finetuning(folder / "run", labelled, mode, plan.epochs * passes, seed)
        asked["model"] = sections["model"]
        asked["train"]["global_batch"] = sections["train"]["global_batch"]
        run_dir = folder / f"{mode}-{labels}"
        spent[run_dir.name] = train("finetune", run_dir, asked, plan.ranks)
        scores = accuracies(run_dir, mode, digits)
        finetuned[labels][mode] = {"settings": without_addresses(asked), **scores}
    settings = without_addresses(sections)
    return {"seed": seed, "spent": spent, "settings": settings, **found, "finetuned": finetuned}


def main(
    minutes: Annotated[float, typer.Option(help="Pretraining, in minutes of two quiet CPU cores.")] = 20.0,
    epochs: Annotated[int, typer.Option(help="Of each finetuning with all labels; with few as many steps.")] = 12,
    ink: Annotated[Ink, typer.Option(help="What its colour tells: who speaks, or nothing.")] = "speaker",
    seeds: Annotated[str, typer.Option(help="Of data, weights and masks; commas between runs.")] = "0",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    ranks: Annotated[int, typer.Option(help="Processes; 0: one a core, at most 2, or one GPU.")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many clips a split; 0: all.")] = 0,
    out: Annotated[Path, typer.Option(help="Data and runs; what is finished there is kept.")] = Path("digits"),
    results: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = CHECKOUT / "benchmarks" / "results",
    figures: Annotated[Path, typer.Option(help="Folder of the figure.")] = CHECKOUT / "docs" / "images",
    maker: Annotated[Path, typer.Option(help="The script that makes the data set.")] = MAKER,
    setting: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Of pretraining's run file. Repeatable.")
    ] = [],  # noqa: B006  typer reads it and never changes it
) -> None:
    """Make the digits, pretrain, finetune, measure, write."""
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    ranks = ranks or (1 if on_gpu else min(2, len(os.sched_getaffinity(0))))
    torch.set_num_threads(1)
    overrides = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in setting)}
    steps = max(1, round(minutes * STEPS_PER_MINUTE))
    plan = Plan(ink, limit, maker, steps, epochs, ranks, overrides)
    runs = [one_run(plan, (out / f"{ink}-{seed}").resolve(), seed) for seed in map(int, seeds.split(","))]
    document = {
        "commit": commit_of(CHECKOUT), **machine(), "torch": torch.__version__, "ranks": ranks, "ink": ink,
        "minutes": minutes, "floors": floors(runs[0]["settings"]["train"]["global_batch"]), "runs": runs,
    }  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"digits-{ink}-{date.today().isoformat()}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    figures.mkdir(parents=True, exist_ok=True)
    write_figure(document, figures / f"digits-{ink}.png")
    typer.echo(tables(document))


if __name__ == "__main__":
    typer.run(main)

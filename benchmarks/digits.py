"""Spoken and handwritten digits: what a small model learns from scratch, half an hour.

`python -m benchmarks.digits --recordings FOLDER_OR_TAR` with the extra `digits` installed (docs/results.md). Makes the
data set (real recordings and handwriting; who speaks is the ink's colour, which digit is the shape), imports it,
pretrains, and follows on clips never seen: retrieval by speaker and by digit, both directions, checkpoint by
checkpoint, and a linear probe of the digit against one of the same model untrained. Then it finetunes three classifiers
of the digit alike, with both modalities, by ear and by eye, and once more with few labels. Writes
benchmarks/results/digits-<ink>-<date>.json and a figure, and prints the tables. All trainings are the real programs;
what is finished in --out is not done again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml

from benchmarks.digits_data import FEW, prepare
from benchmarks.digits_look import accuracies, follow
from benchmarks.digits_maker import Ink, require_libraries
from benchmarks.digits_report import floors, tables, write_figure
from benchmarks.digits_runs import CHECKOUT, MODES, changed, finetuning, pretraining, train, without_addresses
from benchmarks.report import commit_of
from benchmarks.turns import machine
from cavmae_ds.errors import UserError

STEPS_PER_MINUTE = 300
"""Of pretraining on two CPU cores: what --minutes is turned into, so that a budget means the same work anywhere."""


@dataclass(frozen=True)
class Plan:
    """What all seeds have in common."""

    ink: Ink
    limit: int
    recordings: Path | None
    steps: int
    epochs: int
    ranks: int
    overrides: Mapping[str, Any]
    """Other values in pretraining's run file, by section.key."""


def one_run(plan: Plan, folder: Path, seed: int) -> dict[str, Any]:
    """All of it with one seed: what the tables and the figure are made of."""
    digits = prepare(folder, plan.ink, seed, plan.limit, plan.recordings)
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
    recordings: Annotated[
        Path | None,
        typer.Option(help="Folder or tar file of the Free Spoken Digit Dataset; not needed for digits made before."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Pretraining, in minutes of two quiet CPU cores.")] = 20.0,
    epochs: Annotated[int, typer.Option(help="Of each finetuning with all labels; with few as many steps.")] = 12,
    ink: Annotated[Ink, typer.Option(help="What its colour tells: who speaks, or nothing.")] = "speaker",
    seeds: Annotated[str, typer.Option(help="Of data, weights and masks; commas between runs.")] = "0",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    ranks: Annotated[int, typer.Option(help="Processes; 0: one a core, at most 2, or one GPU.")] = 0,
    limit: Annotated[int, typer.Option(help="At most this number of clips a split; 0: all.")] = 0,
    out: Annotated[Path, typer.Option(help="Data and runs; what is finished there is kept.")] = Path("digits"),
    results: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = CHECKOUT / "benchmarks" / "results",
    figures: Annotated[Path, typer.Option(help="Folder of the figure.")] = CHECKOUT / "docs" / "images",
    setting: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Of pretraining's run file. Repeatable.")
    ] = [],  # noqa: B006  typer reads it and never changes it
) -> None:
    """Make the digits, pretrain, finetune, measure, write."""
    require_libraries()
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    ranks = ranks or (1 if on_gpu else min(2, len(os.sched_getaffinity(0))))
    torch.set_num_threads(1)
    overrides = dict(map(_override, setting))
    steps = max(1, round(minutes * STEPS_PER_MINUTE))
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UserError(f"--seeds must be whole numbers with commas between them, as 0,1,2, got {seeds!r}")
    plan = Plan(ink, limit, recordings, steps, epochs, ranks, overrides)
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


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or key.count(".") != 1:
        raise UserError(f"--set must be SECTION.KEY=VALUE, as model.embed_dim=32, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key} must have a YAML value, got {value!r}") from error


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        typer.echo(f"benchmarks.digits: error: {error}", err=True)
        sys.exit(2)
    except subprocess.CalledProcessError as error:  # a training, which has printed why
        sys.exit(error.returncode)

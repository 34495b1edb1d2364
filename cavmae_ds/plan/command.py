"""`cavmae plan`: memory, speed and advice for a run on GPUs that need not be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cavmae_ds.terminal import DisplayConsole, echo

RUN = typer.Argument(help="Run file: YAML with the differences from the defaults.")
OVERRIDES = typer.Argument(help="section.key=value, as many as you like.")


LARGEST = 1e6
"""Of a GPU's figures; no card comes near, and infinity is none."""


def plan(
    run: Annotated[Path, RUN],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the run.")] = 8,
    gpu: Annotated[str, typer.Option(help="h200, h100, a100-80, l40s or custom.")] = "h200",
    memory_gib: Annotated[float | None, typer.Option(min=0.1, max=LARGEST, help="Memory of a GPU, GiB.")] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.1, max=LARGEST, help="Dense rate of the datasheet in the run's precision, TFLOP/s."),
    ] = None,
    bandwidth_tbs: Annotated[float | None, typer.Option(min=0.01, max=LARGEST, help="Memory bandwidth, TB/s.")] = None,
    link_gbs: Annotated[
        float | None,
        typer.Option(min=0.01, max=LARGEST, help="What a GPU receives in a collective, GB/s, in and between hosts."),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a host.")] = 8,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the matrix rate that training reaches.")] = 0.4,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the data set; else data.train is asked.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Predict what a run needs and how fast it goes, and recommend switches. Needs no GPU.

    Bytes of weights, gradients, optimizer and activations on one GPU, what GPUs send each other, the largest
    micro-batch, clips/s and days. A micro-batch that these GPUs cannot take is replaced by one that they can, and
    said so. docs/scaling.md has the formulas and what they were compared with.

    \b
    Example:
      cavmae plan launch/recipes/base.yaml --gpus 8 --gpu h100 --clips 1772023
      cavmae plan launch/recipes/base.yaml train.global_batch=16384 --gpus 64 --clips 1772023 --json
      cavmae plan RUN.yaml --gpu custom --memory-gib 24 --tflops 165 --bandwidth-tbs 1.0 --link-gbs 10
    """
    from cavmae_ds.errors import ConfigError
    from cavmae_ds.plan.advice import check_fit, recommend, with_possible_micro_batch
    from cavmae_ds.plan.hardware import choose_gpu
    from cavmae_ds.plan.predict import Machine, Planner
    from cavmae_ds.plan.report import document
    from cavmae_ds.plan.tables import tables
    from cavmae_ds.tasks import load_run, task_of

    cfg = load_run(run, "", overrides or [])
    machine = Machine(choose_gpu(gpu, memory_gib, tflops, bandwidth_tbs, link_gbs), gpus, gpus_per_node, mfu)
    if not (clips or cfg.data.train or cfg.data.sources):
        raise ConfigError("how many clips the data set has is unknown: give --clips N, or data.train or data.sources")
    cfg, notes = with_possible_micro_batch(cfg, gpus)
    numbers = task_of(cfg).resolve(cfg, gpus, clips or None)
    planner = Planner(cfg, machine, numbers.head_classes())
    recommended = recommend(planner)
    notes += check_fit(planner, recommended)
    found = document(planner, recommended, numbers.total_steps, notes)
    if as_json:
        echo(json.dumps(found, indent=1))
        return
    console = DisplayConsole(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file has no edge to wrap at
    for part in tables(found):
        console.print(part, soft_wrap=isinstance(part, str))  # a line to copy is never broken

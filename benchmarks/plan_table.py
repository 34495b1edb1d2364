"""`python -m benchmarks.plan_table`: what cavmae plan recommends for a few batches on a few machines, as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from cavmae_ds.plan.advice import recommend
from cavmae_ds.plan.hardware import GPUS
from cavmae_ds.plan.predict import Machine, Planner, Prediction
from cavmae_ds.tasks import load_run

BASE = Path(__file__).resolve().parents[1] / "launch" / "recipes" / "base.yaml"
MACHINES = (1, "h200"), (8, "h100"), (8, "a100-80"), (8, "l40s"), (64, "h200"), (512, "h200")
BATCHES = 256, 4096, 16_384, 131_072
MODELS = "base", "large", "huge", "giant"
GIB = 2**30


def rows() -> Iterator[str]:
    """Base at several batches, then larger models at one."""
    yield "| model | GPUs | batch | ZeRO | switches | micro-batch | largest | GiB a GPU | clips/s | compute share |"
    yield "|---|---|---:|---:|---|---:|---:|---:|---:|---:|"
    cases = [("base", machine, batch) for machine in MACHINES for batch in BATCHES if batch % machine[0] == 0]
    cases += [(model, machine, 4096) for model in MODELS[1:] for machine in ((8, "h100"), (64, "h200"))]
    for model, (gpus, gpu), batch in cases:
        if batch < gpus:
            continue
        overrides = [f"model.preset={model}", f"train.global_batch={batch}", "train.micro_batch=1"]
        planner = Planner(load_run(BASE, "pretrain", overrides), Machine(GPUS[gpu], gpus, 8, 0.4))
        found = recommend(planner)
        what = f"| {model} | {gpus} x {gpu} | {batch:,} |"
        yield f"{what} {_cells(found)} |" if found else f"{what} does not fit | | | | | | |"


def _cells(found: Prediction) -> str:
    time, choice = found.time, found.choice
    return " | ".join(
        (
            str(found.stage),
            choice.variant.name,
            f"{choice.micro_batch:,}",
            f"{found.largest_micro_batch:,}",
            f"{found.memory.total / GIB:.1f}",
            f"{found.clips_per_second:,.0f}",
            f"{time.compute / time.step:.1%}",
        )
    )


def main() -> None:
    """Print what cavmae plan recommends for a few batches on a few machines, as markdown."""
    for row in rows():
        typer.echo(row)


if __name__ == "__main__":
    typer.run(main)

"""`cavmae report`: what a run folder can show. Heavy imports when it runs."""

from __future__ import annotations

import json
import shlex
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from cavmae_ds.terminal import DisplayConsole

RUN_DIR = typer.Argument(help="Run folder that pretraining wrote.")
SCORES = "retrieval.json"

console = DisplayConsole(soft_wrap=True)


def report(run_dir: Annotated[Path, RUN_DIR]) -> None:
    """Sum up a run: losses, retrieval, speed, where everything is, and what to type next.

    \b
    Example:
      cavmae report runs/quickstart
    """
    from cavmae_ds.checkpoint import whole_checkpoints
    from cavmae_ds.evaluate.curves import read_curves

    curves = read_curves(run_dir)
    table = Table("what", Column("value", overflow="fold"))
    for tag in ("loss/total", "loss/mae_audio", "loss/mae_image", "loss/contrastive"):
        points = [curves[tag][step] for step in sorted(curves[tag])]
        table.add_row(f"{tag}, first and last", f"{points[0]:.3f} -> {points[-1]:.3f}")
    table.add_row("steps", str(max(curves["loss/total"])))
    rate = statistics.median(curves["perf/clips_per_second"].values())
    table.add_row("clips/s, median", f"{rate:.0f}")
    if (run_dir / SCORES).is_file():
        scores = json.loads((run_dir / SCORES).read_text())
        for name, direction in (("V->A", "image_to_audio"), ("A->V", "audio_to_image")):
            table.add_row(f"{name} retrieval", _beside_chance(scores, direction))
    table.add_section()
    table.add_row("checkpoint", str(whole_checkpoints(run_dir)[-1]))
    table.add_row("TensorBoard logs", str(run_dir / "tensorboard"))
    picture = run_dir / "reconstructions.png"
    if picture.is_file():
        table.add_row("picture", str(picture))
    console.print(table)
    console.print(
        "Next:\n"
        "  source .venv/bin/activate\n"
        "  # curves and pictures of reconstructions\n"
        f"  tensorboard --logdir {shlex.quote(str(run_dir))}\n"
        "  # your own clips, into a folder or s3://bucket/prefix; then CAV-MAE base: what it amounts to, and go\n"
        "  cavmae prepare MY_VIDEOS/ --out shards/mine\n"
        "  python launch/pretrain.py launch/recipes/base.yaml data.train=shards/mine --dry-run --ranks 8\n"
        "  deepspeed launch/pretrain.py launch/recipes/base.yaml data.train=shards/mine"
    )


def _beside_chance(scores: dict[str, Any], direction: str) -> str:
    row = scores[direction]
    text = f"R@1 {row['recall_at_1']:.1%} (chance {scores['chance_recall_at_1']:.1%})"
    if row["class_precision_at_1"] is not None:
        text += f", class P@1 {row['class_precision_at_1']:.1%} (chance {scores['chance_class_precision_at_1']:.1%})"
    return text

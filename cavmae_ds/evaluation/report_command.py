"""`cavmae report`: what a run folder can show. Heavy imports when it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cavmae_ds.terminal import DisplayConsole, folding_table

if TYPE_CHECKING:
    from cavmae_ds.evaluation.run_folder import RunFolder

RUN_DIR = typer.Argument(help="Run folder of pretraining or finetuning, also while it trains.")
MEASURED = ("validation/", "probe/")
"""Curves of clips that are not trained on: the others wander from batch to batch."""
UNREADABLE = "cannot be read; `cavmae evaluate` writes it again"

console = DisplayConsole(soft_wrap=True)


def report(run_dir: Annotated[Path, RUN_DIR]) -> None:
    """Sum up a run: losses, scores and what they are of, speed, where everything is, and what to type next.

    \b
    Example:
      cavmae report runs/quickstart
    """
    from cavmae_ds.evaluation.next_steps import next_steps
    from cavmae_ds.evaluation.run_folder import open_run_folder

    run = open_run_folder(run_dir)
    table = folding_table("what", "value")
    for rows in (_progress(run), _curves(run), _scores(run), _files(run)):
        for name, value in rows:
            table.add_row(name, value)
        table.add_section()
    console.print(table)
    console.print("Next:")
    for purpose, command in next_steps(run):
        console.print(f"  # {purpose}\n  {command}")


def _progress(run: RunFolder) -> Iterator[tuple[str, str]]:
    yield "run", f"{run.run_class.title}, {_state(run)}"
    yield "steps", f"{run.step} of {run.total_steps}" if run.total_steps else str(run.step)


def _state(run: RunFolder) -> str:
    from cavmae_ds.evaluation.run_folder import ENDED, STOPPED

    if run.end:
        return {ENDED: "finished", STOPPED: "stopped early"}[run.end]
    if not run.last_written:
        return "not begun"
    return f"training, or killed: its log was last written {_duration(time.time() - run.last_written)} ago"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _curves(run: RunFolder) -> Iterator[tuple[str, str]]:
    from cavmae_ds.compare.runs import USUAL_TAGS, best

    for tag in USUAL_TAGS:
        if points := run.curves.get(tag):
            text = f"{points[0].value:.3f} -> {points[-1].value:.3f}"
            top = best(points, tag)
            if tag.startswith(MEASURED) and top.step != points[-1].step:
                text += f"; best {top.value:.3f} at step {top.step}"
            yield f"{tag}, first and last", text
    if rates := run.curves.get("perf/clips_per_second"):
        yield "clips/s, median", f"{statistics.median(point.value for point in rates):.0f}"


def _scores(run: RunFolder) -> Iterator[tuple[str, str]]:
    for name, scores in run.scores().items():
        if scores is None:
            yield name, UNREADABLE
            continue
        try:
            values = list(_retrieval(scores) if "chance_recall_at_1" in scores else _classification(scores))
        except (KeyError, TypeError, ValueError, AttributeError):  # another program's, or another version's
            yield name, UNREADABLE
            continue
        yield name, _origin(run, scores)
        yield from values


def _origin(run: RunFolder, scores: dict[str, Any]) -> str:
    """Of which weights scores are, and of which clips."""
    step, data = scores.get("step"), scores.get("data")
    of = "step unknown" if step is None else f"step {step}"
    if step is not None and step != run.step:
        of += f", not of the run's newest step {run.step}"
    return f"{of}; data {', '.join(data) if isinstance(data, list) else data or 'unknown'}"


def _retrieval(scores: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, direction in (("V->A", "image_to_audio"), ("A->V", "audio_to_image")):
        row = scores[direction]
        text = f"R@1 {row['recall_at_1']:.1%} (chance {scores['chance_recall_at_1']:.1%})"
        if row["class_precision_at_1"] is not None:
            text += f", class P@1 {row['class_precision_at_1']:.1%}"
            text += f" (chance {scores['chance_class_precision_at_1']:.1%})"
        yield f"{name} retrieval among {scores['pool']} clips", text


def _classification(scores: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for mode, found in scores["modes"].items():
        text = f"mAP {found['mean_average_precision']:.1%}, accuracy {found['accuracy']:.1%}"
        yield f"{mode}, {found['clips']} clips", text


def _files(run: RunFolder) -> Iterator[tuple[str, str]]:
    every, bucket = (run.settings.get(f"checkpoint.{key}") for key in ("every_steps", "address"))
    none = f"none here; see {bucket}" if bucket else f"none yet; one every {every} steps"
    yield "checkpoint", str(run.checkpoints[-1]) if run.checkpoints else none
    if (run.path / "tensorboard").is_dir():
        yield "TensorBoard logs", str(run.path / "tensorboard")
    pictures = sorted(path for ending in ("*.png", "*.html") for path in run.path.glob(ending))
    if pictures:
        yield "pictures", "\n".join(map(str, pictures))

"""`cavmae compare`: losses of several runs in one picture, and in what the runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import ConfigError
from cavmae_ds.terminal import DisplayConsole, folding_table

if TYPE_CHECKING:
    from cavmae_ds.compare.runs import Axis, ComparedRun

BY = ("steps", "clips", "time")

console = DisplayConsole(soft_wrap=True)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of pretraining or finetuning, two or more.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")] = Path("compare.png"),
    tags: Annotated[str, typer.Option(help="Curves, for example loss/total,perf/mfu; else losses and scores.")] = "",
    by: Annotated[str, typer.Option(help="What goes to the right: steps, clips or time.")] = "steps",
) -> None:
    """Draw the losses and scores of runs into one picture, and say in what the runs differ.

    Runs of different batch meet by clips. Reads config.yaml and log.jsonl of each folder, also while it trains.

    \b
    Example:
      cavmae compare runs/a runs/b --by clips
      cavmae compare runs/* --tags loss/total,optim/grad_norm --out losses.png
    """
    if len(runs) < 2:
        raise ConfigError(f"give two run folders or more, got {len(runs)}")
    if by not in BY:
        raise ConfigError(f"--by must be one of {', '.join(BY)}, got {by!r}")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must end in .png, got {str(out)!r}")
    from cavmae_ds.compare.draw import draw
    from cavmae_ds.compare.runs import choose_tags, load_runs

    found = load_runs(runs)
    chosen = choose_tags(found, [tag for tag in tags.split(",") if tag])
    figure = draw(found, chosen, cast("Axis", by))
    with written_whole(out) as unfinished:
        figure.savefig(unfinished, dpi=110)
    console.print(_values(found, chosen))
    console.print(_settings(found))
    console.print(f"drawn in {out}")


def _values(runs: list[ComparedRun], tags: list[str]) -> Table:
    from cavmae_ds.compare.runs import best

    # Narrow, with names that stay whole: they are to be copied after --tags.
    columns = (Column("curve", no_wrap=True), "run", "last (step)", "best (step)")
    table = folding_table(*columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for tag in tags:
        for number, run in enumerate(runs):
            points = run.curves.get(tag)
            shown = (points[-1], best(points, tag)) if points else ()
            cells = [f"{point.value:.4g} ({point.step})" for point in shown] or ["-", "-"]
            table.add_row(*map(Text, ("" if number else tag, run.name, *cells)))
    return table


def _settings(runs: list[ComparedRun]) -> Table | str:
    from cavmae_ds.compare.draw import shown
    from cavmae_ds.compare.runs import differences

    found = differences(runs)
    if not found:
        return "all settings are the same"
    table = folding_table("setting that differs", "run", "value", box=SIMPLE_HEAD, pad_edge=False)
    for key, values in found.items():
        for number, (run, value) in enumerate(zip(runs, values, strict=True)):
            table.add_row(*map(Text, ("" if number else key, run.name, shown(value))))
    return table

"""`cavmae features`: what a trained model makes of clips, to a file. Heavy imports when it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cavmae_ds.data.loading.selection import MIDDLE_POSITION, POSITIONS
from cavmae_ds.data.prepare.commands import EXIT_UNPUBLISHED, MaxBad
from cavmae_ds.data.prepare.rejects import RejectCode
from cavmae_ds.errors import distinct
from cavmae_ds.terminal import Workers, echo, folding_table, out_console, progress_bar


class Frames(str, Enum):
    """How many frames of a clip are looked at."""

    middle = "1"
    every = "10"


class Precision(str, Enum):
    """What the numbers are stored as."""

    float32 = "float32"
    float16 = "float16"


def features(
    weights: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, official .pth, or .safetensors file.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Data sets of `cavmae prepare`, folders or s3:// addresses; or videos, folders or lists of them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .safetensors, .npz or .parquet.")],
    workers: Workers,
    tokens: Annotated[bool, typer.Option("--tokens", help="Every token, not their mean.")] = False,
    frames: Annotated[Frames, typer.Option(help="The middle frame alone, or all.")] = Frames.middle,
    dtype: Annotated[Precision, typer.Option(help="What the numbers are stored as.")] = Precision.float32,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running mean of a run's weights.")] = False,
    clip_seconds: Annotated[float, typer.Option(min=1, max=30, help="So much of a video is used.")] = 10.0,
    max_bad: MaxBad = 0.05,
) -> None:
    """Write what a model makes of each clip's sound and picture. Models that only hear: of its sound.

    \b
    clip_id  the clips' names; in .safetensors UTF-8 bytes [N, longest], zeros after each
    audio    [N, D], with --tokens [N, La, D]
    image    [N, D], with --frames 10 [N, 10, D]; with --tokens [N, Lv, D] or [N, 10, Lv, D]

    Videos are read as `cavmae prepare` reads them without options. What cannot be used is named, with its reason, in
    FILE.rejected.csv.

    \b
    Examples:
      cavmae features runs/base shards/eval --out eval.safetensors
      cavmae features cav-mae-base.pth videos/ more/clip.mp4 --out videos.npz --frames 10
      cavmae features runs/base s3://bucket/train --out tokens.parquet --tokens --dtype float16
    """
    from cavmae_ds.evaluation.embedding import load
    from cavmae_ds.evaluation.features import extract

    embedder = load(weights, ema=ema, clip_seconds=clip_seconds)
    with progress_bar("looking and listening") as progress:
        found = extract(
            embedder,
            inputs,
            out,
            frames=range(POSITIONS) if frames == Frames.every else (MIDDLE_POSITION,),
            tokens=tokens,
            dtype=dtype.value,
            workers=workers,
            max_bad_share=max_bad,
            progress=progress,
        )
    bad, names = sum(found.unusable.values()), out.with_suffix(".rejected.csv")
    if bad:
        table = folding_table("outcome", "count", "meaning")
        table.add_row("clip", str(found.clips), "")
        for code, count in found.unusable.items():
            table.add_row(code, str(count), _meaning(code))
        out_console.print(table)
    if not found.written:
        why, remedy = f"none of {bad} clips can be used", "mend them"
        if found.clips:
            share, allowed = distinct(bad / (bad + found.clips), max_bad, ".1%")
            why = f"{bad} of {bad + found.clips} clips ({share}) cannot be used, allowed {allowed}"
            remedy = "mend them or raise --max-bad"
        echo(f"cavmae: {out} is not written: {why}; see {names}, then {remedy}", err=True)
        raise typer.Exit(EXIT_UNPUBLISHED)
    shapes = ", ".join(f"{name} {[found.clips, *shape]}" for name, shape in found.shapes.items())
    others = f"; the others are named in {names}" if bad else ""
    out_console.print(f"{found.clips} clips in {out}: {shapes} {dtype.value}{others}", soft_wrap=True)


def _meaning(code: str) -> str:
    known = {reason.value: reason.explanation for reason in RejectCode}
    return known.get(code, "part of a data set is not what was written: prepare it again")

"""`cavmae import-official`, `cavmae create-official`: official data files in and out. Heavy imports when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cavmae_ds.data.prepare.commands import AudioCodec, AudioCodecOption, MaxBad, Shard, conclude
from cavmae_ds.errors import ConfigError
from cavmae_ds.terminal import Workers, err_console, out_console, progress_bar, read_lines


def import_official(
    listing: Annotated[Path, typer.Argument(help="The official data file, .json.")],
    label_csv: Annotated[Path, typer.Option(help="The official classes: index,mid,display_name.")],
    out: Annotated[str, typer.Option(help="Where the data set goes: a folder or s3://bucket/prefix.")],
    workers: Workers,
    weight_csv: Annotated[
        Path | None, typer.Option(help="Weights for balanced sampling, one a line. Default: computed from the labels.")
    ] = None,
    root: Annotated[
        list[str], typer.Option(metavar="OLD=NEW", help="Look below NEW for paths that begin with OLD. Repeatable.")
    ] = [],  # noqa: B006  typer reads it and never changes it
    frame_size: Annotated[int, typer.Option(min=16, max=1024, help="Height and width in pixels.")] = 224,
    keep_silent: Annotated[bool, typer.Option("--keep-silent", help="Keep clips whose sound is all zeros.")] = False,
    audio_codec: AudioCodecOption = AudioCodec.pcm16,
    shard: Shard = "1/1",
    max_bad: MaxBad = 0.05,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds allowed for one clip.")] = 60.0,
) -> None:
    """Turn an official CAV-MAE data set (JSON, WAV files, ten JPEG frames a clip) into shards.

    Sound of any rate is converted to 16 kHz. JPEG files of the frame size are kept byte for byte. Every clip becomes
    a record or is named, with its reason, in rejected.csv. Run the same command again after an interruption: it
    continues, and the result is the same.

    \b
    Example:
      cavmae import-official train.json --label-csv class_labels.csv --out shards/train
      cavmae import-official train.json --label-csv class_labels.csv --out shards/train --root /data=/mnt/copy
    """
    from cavmae_ds.data.official.importing import import_official as import_data_set
    from cavmae_ds.data.prepare.building import Share
    from cavmae_ds.data.prepare.settings import BuildSettings

    settings = BuildSettings(
        frame_size=frame_size, keep_silent=keep_silent, audio_codec=audio_codec.value, time_limit_s=time_limit
    )
    share = Share.parse(shard)
    with progress_bar("importing") as progress:
        outcome = import_data_set(
            listing,
            out,
            settings,
            label_csv=label_csv,
            weight_csv=weight_csv,
            roots=[_root(text) for text in root],
            workers=workers,
            share=share,
            max_bad_share=max_bad,
            progress=progress,
        )
    conclude(outcome, out, max_bad)


def create_official(
    shards: Annotated[str, typer.Argument(help="A data set: a folder or s3://bucket/prefix.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many clips, the first ones.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Only these clips: one clip id a line.")] = None,
) -> None:
    """Write clips of a data set as official CAV-MAE data files: JSON, label CSV, weight CSV, WAV files and frames.

    \b
    Example:
      cavmae create-official shards/train --out official/train --limit 100
    """
    from cavmae_ds.data.official.exporting import LISTING
    from cavmae_ds.data.official.exporting import create_official as create

    if limit is not None and ids is not None:
        raise ConfigError("--limit and --ids were both given; give one of them")
    with progress_bar("writing clips") as progress:
        exported = create(shards, out, limit=limit, ids=_lines(ids) if ids else None, progress=progress)
    out_console.print(f"{exported.clips} clips are in {out / LISTING}", soft_wrap=True)
    if exported.left_out:
        err_console.print(f"{exported.left_out} clips without sound or picture are left out", soft_wrap=True)
    if exported.without_label:
        err_console.print(
            f"{exported.without_label} of them have no label, which the official loader does not accept", soft_wrap=True
        )


def _root(text: str) -> tuple[str, Path]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise ConfigError(f"--root must be OLD=NEW, got {text!r}")
    return old, Path(new).absolute()


def _lines(path: Path) -> list[str]:
    wanted = sorted(set(read_lines("--ids", path)))
    if not wanted:
        raise ConfigError(f"--ids {path} names no clip")
    return wanted

"""`cavmae prepare`, `cavmae synthesize`: from videos to data sets. Heavy imports when they run."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cavmae_ds.data.prepare.rejects import RejectCode
from cavmae_ds.errors import ConfigError, distinct
from cavmae_ds.terminal import Workers, echo, folding_table, out_console, progress_bar, read_lines

if TYPE_CHECKING:
    from cavmae_ds.data.prepare.building import PartsMissing
    from cavmae_ds.data.prepare.publishing import PrepareReport

EXIT_UNPUBLISHED = 3

REJECT_CODES = "\b\nReasons for which an input is rejected:\n" + "\n".join(
    f"  {code.value:<15}{code.explanation}" for code in RejectCode
)

MaxBad = Annotated[float, typer.Option(min=0, max=1, help="Largest share of rejected inputs to publish with.")]

Shard = Annotated[
    str,
    typer.Option(help="i/n: build only the i-th of n shares, beside n - 1 other machines; 3/8 is the third of eight."),
]


class AudioCodec(str, Enum):
    """How the shards keep the sound."""

    pcm16 = "pcm16"
    flac = "flac"


AudioCodecOption = Annotated[
    AudioCodec, typer.Option(help="Sound as plain 16-bit samples, or as FLAC: lossless, smaller, slower to read.")
]


class FrameRule(str, Enum):
    """How the frames of a clip are chosen."""

    time = "time"
    official = "official"


class Require(str, Enum):
    """What every clip must have."""

    both = "both"
    audio = "audio"
    video = "video"


class Channel(str, Enum):
    """Which of the source's sound channels a clip keeps."""

    first = "first"
    mean = "mean"


def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of videos, a .txt with one path a line, or a .csv with the header path,labels."),
    ],
    out: Annotated[str, typer.Option(help="Where the data set goes: a folder or s3://bucket/prefix.")],
    workers: Workers,
    classes: Annotated[
        Path | None, typer.Option(help="One class name a line; numbers the labels alike in every data set.")
    ] = None,
    frame_size: Annotated[
        int | None,
        typer.Option(min=16, max=1024, show_default="224", help="Frames are cut to a square of this side, pixels."),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Keep whole frames, their short side scaled to these pixels.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=1800, show_default="10", help="Frames of a clip, at equal steps of time.")
    ] = None,
    frames_per_second: Annotated[
        float | None, typer.Option(min=0.1, max=60, help="Frames at this rate instead, as many as a clip has.")
    ] = None,
    require: Annotated[
        Require, typer.Option(help="What a clip must have; the other is left out where it is missing or damaged.")
    ] = Require.both,
    jpeg_quality: Annotated[int, typer.Option(min=1, max=100)] = 90,
    clip_seconds: Annotated[float, typer.Option(min=1, max=30, help="Longest clip.")] = 10.0,
    channel: Annotated[Channel, typer.Option(help="The first sound channel or their mean.")] = Channel.first,
    audio_track: Annotated[int, typer.Option(min=1, help="Which sound track of a file is read; 1 is the first.")] = 1,
    keep_silent: Annotated[bool, typer.Option("--keep-silent", help="Keep clips whose sound is all zeros.")] = False,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Cut longer videos into clips, one after another, not just their beginning."),
    ] = False,
    frame_rule: Annotated[
        FrameRule,
        typer.Option(help="Frames at equal steps of time, or the ten that the official CAV-MAE script picks."),
    ] = FrameRule.time,
    audio_codec: AudioCodecOption = AudioCodec.pcm16,
    shard: Shard = "1/1",
    max_bad: MaxBad = 0.05,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds allowed for one clip.")] = 60.0,
) -> None:
    """Turn videos into shards that training streams.

    Every input becomes a clip or is named, with its reason, in rejected.csv. Run the same command again
    after an interruption: it continues, and the result is the same. With --windows clip ids end with the second
    at which they begin, as in name@00010.0.

    \b
    Example:
      cavmae prepare videos/ --out s3://bucket/train
      cavmae prepare train.csv --out shards/train --classes classes.txt --max-bad 0.1
      cavmae prepare videos/ --out s3://bucket/train --windows --shard 3/8
      cavmae prepare videos/ --out shards/train --frames-per-second 8 --short-side 256 --require audio
    """
    from cavmae_ds.data.prepare.building import Share
    from cavmae_ds.data.prepare.settings import PrepareSettings
    from cavmae_ds.data.prepare.videos import prepare as prepare_data_set

    if frame_size and short_side:
        raise ConfigError("--frame-size and --short-side were both given; give one of them")
    if frames and frames_per_second:
        raise ConfigError("--frames and --frames-per-second were both given; give one of them")
    if frame_rule is FrameRule.official and (frames_per_second or frames not in (None, 10)):
        raise ConfigError("--frame-rule official picks ten frames; leave out --frames and --frames-per-second")
    settings = PrepareSettings(
        frame_size=frame_size or 224,
        short_side=short_side,
        frames=frames or 10,
        frames_per_second=frames_per_second,
        require=require.value,
        jpeg_quality=jpeg_quality,
        clip_seconds=clip_seconds,
        channel=channel.value,
        audio_track=audio_track,
        keep_silent=keep_silent,
        windows=windows,
        frame_rule=frame_rule.value,
        audio_codec=audio_codec.value,
        time_limit_s=time_limit,
        classes=tuple(line.strip() for line in read_lines("--classes", classes)) if classes else None,
    )
    share = Share.parse(shard)
    with progress_bar("preparing") as progress:
        outcome = prepare_data_set(
            source, out, settings, workers=workers, share=share, max_bad_share=max_bad, progress=progress
        )
    conclude(outcome, out, max_bad)


def synthesize(
    out: Annotated[Path, typer.Option(help="The folder that gets the videos and tables.")],
    workers: Workers,
    clips: Annotated[int, typer.Option(min=1)] = 480,
    classes: Annotated[int, typer.Option(min=1, help="At most 8.")] = 8,
    seconds: Annotated[float, typer.Option(help="Length of each video.")] = 2.56,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 12.5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other videos.")] = 0,
    eval_share: Annotated[float, typer.Option(min=0, max=1, help="Share kept out of train.csv.")] = 0.2,
) -> None:
    """Make labelled videos with sound, to try everything without data of your own.

    Each class is one thing seen tied to one thing heard. Writes videos/, train.csv, eval.csv, classes.txt.

    \b
    Example:
      cavmae synthesize --out made
      cavmae prepare made/train.csv --out shards/train --classes made/classes.txt
    """
    from cavmae_ds.data.synthetic import synthesize as synthesize_videos

    with progress_bar("making videos") as progress:
        split = synthesize_videos(
            out,
            clips=clips,
            classes=classes,
            seconds=seconds,
            size=size,
            fps=fps,
            seed=seed,
            eval_share=eval_share,
            workers=workers,
            progress=progress,
        )
    out_console.print(f"{split.train} videos to train on and {split.eval} to evaluate on are in {out}")


def conclude(outcome: PrepareReport | PartsMissing, out: str, max_bad: float) -> None:
    """Shows what became of the inputs of a data set. Exit code 3 when too many were rejected."""
    from cavmae_ds.data.prepare.building import PartsMissing

    if isinstance(outcome, PartsMissing):
        out_console.print(
            f"this share is done; {out} lacks {len(outcome.missing)} of {outcome.parts} parts, the first is "
            f"{outcome.missing[0]}: the last share to end publishes it"
        )
        return
    if outcome.finished_before:
        out_console.print(f"{out} is complete already: nothing to do")
    table = folding_table("outcome", "count", "meaning")
    table.add_row("clip", str(outcome.clips), f"{outcome.seconds:.0f} s of sound, {outcome.bytes / 1e6:.1f} MB in all")
    for code, count in outcome.rejected.items():
        table.add_row(code, str(count), RejectCode(code).explanation)
    out_console.print(table)
    if not outcome.published:
        why = "no input became a clip"
        if outcome.clips:
            rejected, allowed = distinct(outcome.bad_share, max_bad, ".1%")
            why = f"{rejected} of the inputs were rejected, allowed {allowed}"
        remedy = "mend the inputs or raise --max-bad" if outcome.clips else "mend the inputs"
        echo(f"cavmae: {out} is not published: {why}; see rejected.csv there, then {remedy}", err=True)
        raise typer.Exit(EXIT_UNPUBLISHED)
    address = shlex.quote(str(out))
    following = f"cavmae inspect {address} --out look.html, then cavmae stats {address}"
    typer.echo(f"the data set is in {out}; next: {following}")

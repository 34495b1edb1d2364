"""`cavmae stats`, `cavmae inspect`: what is in a data set. Heavy imports when they run."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import ConfigError, DataError, UserError
from cavmae_ds.terminal import Workers, echo, err_console, folding_table, out_console, progress_bar

if TYPE_CHECKING:
    from cavmae_ds.data.inspect.statistics import LogMelStatistics
    from cavmae_ds.data.inspect.summary import Section

EXIT_DAMAGED = 4
BAR_CELLS = 24


class Device(str, Enum):
    """Where log-mels are computed."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def stats(
    shards: Annotated[list[str], typer.Argument(help="Data sets: folders or s3://bucket/prefix.")],
    workers: Workers,
    device: Annotated[Device, typer.Option(help="auto: a GPU if there is one.")] = Device.auto,
    clips: Annotated[int | None, typer.Option(min=1, help="So many from all over each data set. Default: all.")] = None,
) -> None:
    """Measure the mean and standard deviation of the raw log-mel, to normalise the sound with.

    Prints the two lines for the run file, and writes stats.json beside the shards when all clips were read.

    \b
    Example:
      cavmae stats shards/train
      cavmae stats s3://bucket/train s3://bucket/more --clips 5000
    """
    import torch

    from cavmae_ds.data.format.records import Records
    from cavmae_ds.data.format.spread import spread
    from cavmae_ds.data.inspect.statistics import STATISTICS, clip_sums, merged
    from cavmae_ds.data.storage import open_store

    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no GPU; use --device cpu")
    chosen = torch.device("cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu")
    all_sums = []
    for address in shards:
        records = Records(address)
        places = spread(clips or len(records), len(records))
        with progress_bar(f"listening to {address}") as progress:
            all_sums.append(clip_sums(records, places, chosen, workers, progress))
        if len(places) == len(records):
            try:
                content = all_sums[-1].statistics().model_dump_json(indent=1)
                open_store(address).put_bytes(STATISTICS, content.encode())
            except UserError as error:
                err_console.print(f"{STATISTICS} could not be written: {error}", soft_wrap=True)
    _show_statistics(merged(all_sums).statistics())


def inspect(
    shards: Annotated[str, typer.Argument(help="A data set: a folder or s3://bucket/prefix.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write a page (.html) with pictures and sounds, or a picture (.png).")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, max=100, help="Clips on the page or picture.")] = 12,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its hash.")] = False,
) -> None:
    """Show what is in a data set, and whether its files are all there.

    Reads what stands beside the shards, and of the shards the clips that are shown. Ends with exit code 4, naming
    each file, when some are missing or damaged.

    \b
    Example:
      cavmae inspect shards/train --out report.html
      cavmae inspect s3://bucket/train --verify
    """
    from cavmae_ds.data.format.records import Records
    from cavmae_ds.data.inspect.inspection import inspect_data_set
    from cavmae_ds.data.inspect.summary import summary

    if out is not None and out.suffix.lower() not in (".html", ".png"):
        raise ConfigError(f"--out must end in .html or .png, got {out}")
    records = Records(shards)
    with progress_bar("inspecting") as progress:
        found = inspect_data_set(records, verify=verify, progress=progress)
    sections = summary(found)
    for section in sections:
        _show_section(section)
    if out is not None:
        from cavmae_ds.data.inspect.contact_sheet import draw_sheet, png_of, spread_clips
        from cavmae_ds.data.inspect.page import html_page

        try:
            shown = spread_clips(records, clips)
        except DataError as error:
            shown = []
            found.faults.append(str(error))
        title = f"{shards}: {found.manifest.clips:,} clips"
        if out.suffix.lower() == ".html":
            content = html_page(title, sections, found.faults, shown).encode("utf-8", "backslashreplace")
        else:
            content = png_of(draw_sheet(shown, title)) if shown else b""
        if content:
            with written_whole(out) as unfinished:
                unfinished.write_bytes(content)
        out_console.print(f"{len(shown)} clips are shown in {out}", soft_wrap=True)
    for fault in found.faults:
        echo(f"cavmae: {fault}", err=True)
    if found.faults:
        raise typer.Exit(EXIT_DAMAGED)


def _show_statistics(found: LogMelStatistics) -> None:
    seconds = found.log_mel_frames / 100
    table = folding_table(
        "log-mel", Column("mean", justify="right"), Column("std", justify="right"),
        title=f"{found.clips} clips, {seconds:.0f} s", title_justify="left",
    )  # fmt: skip
    rows = {
        "every frame, no padding": found.every_frame,
        "mean of batches, padded to 1024 frames (official way)": found.batches_padded,
        "mean of batches, no padding": found.batches_without_padding,
    }
    for name, numbers in rows.items():
        table.add_row(name, f"{numbers.mean:.4f}", f"{numbers.std:.4f}")
    out_console.print(table)
    out_console.print(
        f"For the run file:\ndata.audio_mean: {found.every_frame.mean:.4f}\ndata.audio_std: {found.every_frame.std:.4f}"
    )


def _show_section(section: Section) -> None:
    bars = any(row.share is not None for row in section.rows)
    columns = [Column(), Column(justify="right" if bars else "left")]
    if bars:
        columns.insert(1, Column(width=BAR_CELLS))
    table = folding_table(*columns, show_header=False, box=None)
    for row in section.rows:
        bar = ["█" * round(BAR_CELLS * (row.share or 0))] if bars else []
        table.add_row(row.name, *bar, row.value)
    out_console.print(section.title, style="bold")
    out_console.print(table)
    if section.note:
        out_console.print(f" {section.note}", soft_wrap=True)
    out_console.print()

"""`cavmae checkpoint inspect`, `convert`, `prune`: the checkpoints of a run. Heavy imports when they run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from cavmae_ds.errors import CheckpointError
from cavmae_ds.terminal import echo, folding_table, out_console, progress_bar

if TYPE_CHECKING:
    from cavmae_ds.checkpoint.folder import Read
    from cavmae_ds.checkpoint.manifest import Manifest
    from cavmae_ds.checkpoint.store import CheckpointStore, Entry

EXIT_DAMAGED = 4
EXIT_CODES = """\b
Exit codes:
  0  done
  2  something must change first: one sentence on stderr says what
  4  checkpoints are damaged: each is named on stderr
"""
LARGEST = 10

checkpoint = typer.Typer(
    help="Look at the checkpoints of a run, take weights out of one, remove old ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CHECKPOINTS = typer.Argument(help="A run folder, one of its checkpoints, or s3://bucket/prefix of either.")


@checkpoint.command(epilog=EXIT_CODES)
def inspect(
    address: Annotated[str, CHECKPOINTS],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its hash.")] = False,
) -> None:
    """Show the checkpoints of a run, and whether they are whole; of a single one, what is in it.

    Without --verify manifests and the sizes of files are read. A start of the run does the same and more: it compares
    hashes, and takes the newest checkpoint that is whole.

    \b
    Example:
      cavmae checkpoint inspect runs/base
      cavmae checkpoint inspect runs/base/checkpoints/step-00120000 --verify
      cavmae checkpoint inspect s3://bucket/runs/base
    """
    from cavmae_ds.checkpoint.store import entries, open_checkpoints

    store, name = open_checkpoints(address)
    found = entries(store, name)
    if verify:
        found = [_verified(store, entry) for entry in found]
    out_console.print(_overview(store, found))
    if name and found[0].manifest:
        for table in _contents(found[0].manifest):
            out_console.print()
            out_console.print(table)
    damaged = [entry for entry in found if entry.is_damaged]
    for entry in damaged:
        echo(f"cavmae: {entry.condition}", err=True)
    if damaged:
        raise typer.Exit(EXIT_DAMAGED)


@checkpoint.command(epilog=EXIT_CODES)
def convert(
    address: Annotated[str, CHECKPOINTS],
    out: Annotated[Path, typer.Option(help="The file to write, .safetensors.")],
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the running mean of the weights (train.ema_clips), not the weights.")
    ] = False,
) -> None:
    """Write the weights of a checkpoint as one file, whole, in float32, under the official names.

    Of a run the newest checkpoint is taken; its files are compared with what was written. The header of the file says
    what the model is and what its inputs are normalised with. What only the optimizer needs is left out.

    \b
    Example:
      cavmae checkpoint convert runs/base --out base.safetensors
      cavmae checkpoint convert s3://bucket/runs/base/step-00120000 --out base-ema.safetensors --ema
    """
    from cavmae_ds.checkpoint.layout import EMA, MASTER
    from cavmae_ds.checkpoint.store import entries, open_checkpoints
    from cavmae_ds.checkpoint.weights import export_weights

    store, name = open_checkpoints(address)
    found = entries(store, name)
    finished = {entry.name: entry.manifest for entry in found if entry.manifest}
    if not finished:
        raise CheckpointError(f"{address!r} holds no finished checkpoint")
    newest, manifest = list(finished.items())[-1]
    with _reading(newest, manifest.bytes) as read, store.opened(newest, manifest, read) as folder:
        export_weights(folder, out, EMA if ema else MASTER)
    out_console.print(f"{newest} of {store.url} is now {out}, {_size(out.stat().st_size)}", soft_wrap=True)


@checkpoint.command(epilog=EXIT_CODES)
def prune(
    address: Annotated[str, typer.Argument(help="A run folder, or s3://bucket/prefix.")],
    keep_last: Annotated[int, typer.Option(min=1, help="The newest so many stay.")],
    keep_every: Annotated[
        int, typer.Option(min=0, help="Those after multiples of so many steps stay, too; 0: no others.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old checkpoints of a run, as checkpoint.keep_last and checkpoint.keep_every do while it trains.

    What was set aside as damaged stays: remove it by hand when it is of no more use. The run may be training: this
    makes room on a disk that is full. The newest checkpoint, which a run reads or uploads, stays.

    \b
    Example:
      cavmae checkpoint prune runs/base --keep-last 2 --keep-every 50000 --dry-run
    """
    from cavmae_ds.checkpoint.retention import Retention
    from cavmae_ds.checkpoint.store import entries, open_checkpoints, superseded

    store, name = open_checkpoints(address)
    if name:
        raise CheckpointError(f"{address!r} is a single checkpoint; give the run folder, or remove it by hand")
    keep = Retention(keep_last, keep_every)
    gone = superseded(entries(store), keep)
    if not dry_run:
        store.prune(keep)
    for entry in gone:
        size = f", {_size(entry.manifest.bytes)}" if entry.manifest else ""
        out_console.print(f"{entry.name}{size}: {'would be removed' if dry_run else 'removed'}")
    if not gone:
        out_console.print("nothing to remove")


def _verified(store: CheckpointStore, entry: Entry) -> Entry:
    if entry.is_damaged or not entry.manifest:
        return entry
    try:
        with _reading(entry.name, entry.manifest.bytes) as read:
            store.verify(entry.name, entry.manifest, read)
    except CheckpointError as error:
        return entry._replace(condition=str(error))
    return entry


@contextmanager
def _reading(name: str, total: int) -> Iterator[Read]:
    """A bar of the bytes that threads have read."""
    done, lock = 0, Lock()
    with progress_bar(f"reading {name}, MB") as progress:

        def read(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                progress(done // 1_000_000, total // 1_000_000)

        yield read


def _overview(store: CheckpointStore, entries: list[Entry]) -> Table:
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("clips", "ranks", "ZeRO", "size", "age"))
    names = (Column(name, no_wrap=True) for name in ("checkpoint", "is"))
    table = folding_table(*names, *numbers, "states", title=store.url, title_justify="left", box=None, pad_edge=False)
    for entry in entries:
        about = ["damaged" if entry.is_damaged else entry.condition]
        if manifest := entry.manifest:
            about += [f"{manifest.clips_seen:,}", str(manifest.ranks), str(manifest.zero_stage)]
            about += [_size(manifest.bytes), _age(entry.written), ", ".join(manifest.states)]
        table.add_row(entry.name, *about)
    return table


def _contents(manifest: Manifest) -> Iterator[Table]:
    """Of a single checkpoint: its files, what a resume compares, its largest parameters."""
    files = folding_table("file", Column("size", justify="right"), "sha256", box=None, pad_edge=False)
    for name, record in sorted(manifest.files.items()):
        files.add_row(name, _size(record.bytes), record.sha256[:16])
    settings = folding_table("setting of the run", "value", box=None, pad_edge=False)
    for key, value in manifest.identity.items():
        settings.add_row(key, str(value))
    elements = {name: math.prod(parameter.shape) for name, parameter in manifest.parameters.items()}
    largest = sorted(elements, key=lambda name: elements[name], reverse=True)[:LARGEST]
    title = f"{sum(elements.values()):,} parameters in {len(elements)} tensors, the largest:"
    parameters = folding_table(
        "parameter", "shape", "trained as", title=title, title_justify="left", box=None, pad_edge=False
    )
    for name in largest:
        parameter = manifest.parameters[name]
        kind = parameter.dtype if parameter.trained else f"{parameter.dtype}, frozen"
        parameters.add_row(name, " x ".join(map(str, parameter.shape)), kind)
    yield from (files, settings, parameters)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _age(written: float) -> str:
    minutes = max(0.0, time.time() - written) / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 2880 else f"{minutes / 1440:.0f} d"

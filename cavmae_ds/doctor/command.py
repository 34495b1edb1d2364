"""`cavmae doctor`: on this host alone, or on every rank when the launcher starts launch/doctor.py."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import RankError, UserError
from cavmae_ds.fault_tolerance.exit import ExitCode, leave, say
from cavmae_ds.terminal import DisplayConsole

if TYPE_CHECKING:
    from cavmae_ds.config.sections.run import RunConfig
    from cavmae_ds.doctor.examine import Asked
    from cavmae_ds.doctor.report import Line


def doctor(
    run: Annotated[Path | None, typer.Argument(help="Run file; without it the defaults of one.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as you like.")] = None,
    bucket: Annotated[
        list[str] | None, typer.Option(help="s3://bucket/prefix or folder to read from, besides those of the run.")
    ] = None,
    clips_per_second: Annotated[
        float, typer.Option(min=0, help="Clips that the whole run takes a second (cavmae plan); 0: not known.")
    ] = 0.0,
    seconds: Annotated[float, typer.Option(min=1, help="Longest that one check may take.")] = 60.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings there too.")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Look for what would end a run, or slow it down, before it starts; each thing to fix comes with what to do.

    Versions, devices, shared memory, disks, buckets and their speed, compiler; of a run its numbers and first weights;
    under the launcher also whether all ranks are alike, and how fast they reach each other. Nothing is repaired,
    nothing left behind. Exit code 2 if there is something to fix.

    \b
    Examples:
      cavmae doctor RUN.yaml
      cavmae doctor --bucket s3://my-bucket/train --json found.json
      deepspeed --hostfile launch/hostfile launch/doctor.py RUN.yaml
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch: a store that is gone is no news
    from cavmae_ds.doctor.examine import Asked, own_findings, run_findings
    from cavmae_ds.doctor.finding import ok, refused
    from cavmae_ds.doctor.report import Line, merged

    try:
        cfg, about = _config(run, overrides or []), ok("run file", str(run) if run else "none: the defaults")
    except UserError as error:
        cfg, about, run = _config(None, []), refused("run file", error), None
    asked = Asked(cfg, run is not None, tuple(bucket or []), clips_per_second, seconds, dict(os.environ))
    if asked.ranks == 1:
        hosts = {0: socket.gethostname()}
        lines = merged({0: [*own_findings(asked, local_rank), *run_findings(asked)]})
    else:
        lines, hosts = _together(asked, local_rank)
    _tell([Line(about), *lines], hosts, asked.ranks, json_file)


def _together(asked: Asked, local_rank: int) -> tuple[list[Line], dict[int, str]]:
    """Returns on the first rank alone."""
    from cavmae_ds.distributed.process_group import is_lost_connection
    from cavmae_ds.doctor.ranks import examine_together

    try:
        lines, hosts = examine_together(asked, local_rank)
    except RankError as error:  # each rank has its own to say
        say(f"doctor: error: {error}")
        leave(ExitCode.REFUSED)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        say(f"doctor: error: rank {os.environ['RANK']} on {socket.gethostname()} has lost the others: {error}")
        leave(ExitCode.LOST)
    if not hosts:
        leave(ExitCode.DONE)  # not by the interpreter's end: a check that hangs would hold it up
    return lines, hosts


def _config(run: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The run of whichever task, or the defaults of pretraining. Raises ConfigError as load_run does."""
    from cavmae_ds.tasks import load_run, validate_run

    return load_run(run, overrides=overrides) if run else validate_run({"train": {"epochs": 1}}, "pretrain")


def _tell(lines: Sequence[Line], hosts: Mapping[int, str], ranks: int, json_file: Path | None) -> None:
    """Table, document, exit code. Raises ConfigError if the document cannot be written."""
    from cavmae_ds.doctor.finding import Verdict
    from cavmae_ds.doctor.report import document, summary, table, worst

    console = DisplayConsole(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file has no edge to wrap at
    console.print(table(lines, hosts, ranks))
    console.print(summary(lines))
    if ranks == 1:
        console.print("This host alone; with a launcher, hosts and links are compared: launch/doctor.py.")
    if json_file:
        with written_whole(json_file) as unfinished:
            unfinished.write_text(json.dumps(document(lines, hosts, ranks), indent=1) + "\n")
    leave(ExitCode.REFUSED if worst(lines) == Verdict.FIX else ExitCode.DONE)

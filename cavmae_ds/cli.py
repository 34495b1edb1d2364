"""The `cavmae` command: its commands, exit codes and errors. Commands import what they need when they run."""

import logging
import sys
import traceback
from typing import Annotated

import typer

from cavmae_ds import __version__
from cavmae_ds.atomic_io import refusal
from cavmae_ds.checkpoint.commands import checkpoint
from cavmae_ds.compare.command import compare
from cavmae_ds.data.inspect.commands import inspect, stats
from cavmae_ds.data.official.commands import create_official, import_official
from cavmae_ds.data.prepare.commands import REJECT_CODES, prepare, synthesize
from cavmae_ds.doctor.command import doctor
from cavmae_ds.evaluation.features_command import features
from cavmae_ds.evaluation.inpaint_command import inpaint
from cavmae_ds.evaluation.report_command import report
from cavmae_ds.evaluation.scoring_command import evaluate
from cavmae_ds.launcher.command import launch
from cavmae_ds.plan.command import plan
from cavmae_ds.terminal import echo, log_to_stderr, open_standard_streams
from cavmae_ds.weights.commands import export

EXIT_DEFECT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0  done
  2  something must change first: one sentence on stderr says what
  3  too many inputs were rejected: the data set, or file, is not written
  4  files of a data set, or checkpoints, are missing or damaged: each is named on stderr
"""

RUN_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a defect of the program, again after every restart
  2    something must change first: one sentence on stderr says what
  69   a rank or a host was lost, again after every restart
  75   stopped early, everything is saved: the same command goes on
  130  told twice to stop: the same command goes on from the last checkpoint
"""

app = typer.Typer(
    help=f"Pretrains audio-visual masked autoencoders.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cavmae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    print_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, then stop.")
    ] = False,
) -> None:
    pass


for building in (prepare, import_official, features):
    app.command(epilog=f"{REJECT_CODES}\n\n{EXIT_CODES}")(building)
for command in (create_official, synthesize, inspect, stats, plan, evaluate, inpaint, export, report, compare, doctor):
    app.command(epilog=EXIT_CODES)(command)
app.command(epilog=RUN_EXIT_CODES)(launch)
app.add_typer(checkpoint, name="checkpoint")


def main() -> None:
    """Runs the command line. What the user must change first becomes one sentence on stderr and exit code 2."""
    open_standard_streams()
    log_to_stderr(logging.WARNING)
    try:
        app(prog_name="cavmae")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        sentence = refusal(error)
        echo(f"cavmae: error: {sentence}" if sentence else traceback.format_exc(), err=True)
        sys.exit(EXIT_USER_ERROR if sentence else EXIT_DEFECT)

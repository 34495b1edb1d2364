"""What commands share at the terminal: consoles, a progress bar, the number of processes, files of lines."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from cavmae_ds.atomic_io import read_text
from cavmae_ds.errors import ConfigError, DataError, for_display


class DisplayConsole(Console):
    """Prints text as it is: `[x]` is no markup and `:x:` no emoji, but no secret and no control character goes out.

    What is to be styled is a rich Text, or a style of the table.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Everything that is printed as a str comes through here, also the cells and titles of tables."""
        return super().render_str(for_display(text), **options)


out_console = DisplayConsole()
err_console = DisplayConsole(stderr=True)


def echo(text: str, err: bool = False) -> None:
    """A line to stdout or stderr, never wrapped."""
    typer.echo(for_display(text), err=err)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


Workers = Annotated[
    int,
    typer.Option(
        default_factory=available_cores,
        show_default="one a core",
        min=1,
        help="Processes that work at the same time.",
    ),
]


def folding_table(*columns: Column | str, **style: Any) -> Table:
    """A table for any width of terminal: a word that is too long for its column folds, where rich would cut it off."""
    made = (Column(column) if isinstance(column, str) else column for column in columns)
    return Table(*(replace(column, overflow="fold") for column in made), **style)


def read_lines(option: str, path: Path) -> list[str]:
    """The lines of a text file that an option names, but for blank ones. Raises ConfigError naming the option."""
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise ConfigError(f"{option} {error}") from error
    return [line for line in lines if line.strip()]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal, with the time that is left. Yields what to call with (done, total)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err_console, transient=True, disable=not err_console.is_terminal) as bar:
        task = bar.add_task(for_display(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _DisplayFormatter(logging.Formatter):
    """Applies to messages and to their tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return for_display(super().format(record))


def log_to_stderr(level: int) -> None:
    """Lines of all loggers from `level` on, unless the root logger has a handler already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_DisplayFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def open_standard_streams() -> None:
    """Call it first. A stream that the caller closed (`>&-`, some daemons) leads to /dev/null.

    Otherwise the next file that is opened would get its number, and with it what libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115  for the life of the process

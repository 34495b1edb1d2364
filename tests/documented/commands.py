"""Every command line that README, docs and --help show, collected from where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from typer import Typer
from typer.core import TyperGroup
from typer.main import get_command

from cavmae_ds import train_cli
from cavmae_ds.cli import app
from tests.ranks import CHECKOUT

PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md")))
TRAINING_SCRIPTS = {
    "pretrain.py": train_cli.pretrain_command,
    "finetune.py": train_cli.finetune_command,
    "train.py": train_cli.train_command,
}
PROGRAMS = ("cavmae", "deepspeed", "python", "tensorboard")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'(\w+)'$")
_FILE = re.compile(r"# ([\w/]+(?:\.yaml|hostfile))\b.*\n")


class Documented(NamedTuple):
    """A command line and the page that shows it."""

    line: str
    """As a shell would take it: continued lines joined, no comment."""
    page: str

    @property
    def words(self) -> list[str]:
        """The words of the line; the program first."""
        return shlex.split(self.line)


def documented_commands() -> list[Documented]:
    """All of them, each line once, in the order of the pages."""
    found: dict[str, Documented] = {}
    for line, page in (*_of_pages(), *_of_help()):
        found.setdefault(line, Documented(line, page))
    return list(found.values())


def mentioned_commands() -> list[Documented]:
    """Commands of ours with options, named in the middle of a sentence: `cavmae inspect --verify`."""
    texts = ((page, re.findall(r"`(cavmae [^`\n]*--[^`\n]+)`", page.read_text())) for page in PAGES)
    return [Documented(line, _name(page)) for page, lines in texts for line in dict.fromkeys(lines)]


def documented_files() -> dict[str, str]:
    """Files that pages show whole, under the name in their first line's comment (# finetune.yaml)."""
    blocks = (block for page in PAGES for _, block in _blocks(page))
    return {match[1]: block for block in blocks if (match := _FILE.match(block))}


def cli_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `cavmae WORDS` runs, and the words left for it."""
    command: Any = get_command(app)
    while isinstance(command, TyperGroup) and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def script_command(script: str) -> Any:
    """The command of a script in launch/ that trains."""
    one = Typer(add_completion=False)
    one.command()(TRAINING_SCRIPTS[script])
    return get_command(one)


def _of_pages() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for language, block in _blocks(page):
            if language == "bash":
                yield from ((line, _name(page)) for line in _shell_lines(block))
            elif not language:
                lines = (line.removeprefix("$ ") for line in _joined(block))
                yield from ((_without_comment(x), _name(page)) for x in lines if x.split(" ")[0] in PROGRAMS)


def _of_help() -> Iterator[tuple[str, str]]:
    helps = [("cavmae", get_command(app))]
    while helps:
        name, command = helps.pop(0)
        if isinstance(command, TyperGroup):
            helps += [(f"{name} {sub}", one) for sub, one in command.commands.items()]
        yield from ((line, f"{name} --help") for line in _examples(command))
    for script in TRAINING_SCRIPTS:
        yield from ((line, f"launch/{script} --help") for line in _examples(script_command(script)))


def _examples(command: Any) -> Iterator[str]:
    lines = (line.strip() for line in _joined(command.help or ""))
    yield from (_without_comment(line) for line in lines if line.split(" ")[0] in PROGRAMS and " " in line)


def _blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return [(language, block) for _, language, block in _FENCE.findall(page.read_text())]


def _shell_lines(block: str) -> Iterator[str]:
    """Logical lines: a file that is written (cat > F <<'END') is one; comments and blank lines are none."""
    lines = iter(_joined(block))
    for line in lines:
        if end := _HEREDOC.search(line):
            body = list(iter(lambda: next(lines), end[1]))
            yield "\n".join((line, *body, end[1]))
        elif stripped := _without_comment(line):
            yield stripped


def _joined(block: str) -> list[str]:
    return re.sub(r" *\\\n *", " ", block).splitlines()


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#.*$", "", line).strip()


def _name(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))

"""The `cavmae` command itself, and what its pages cite."""

from __future__ import annotations

import re
from configparser import ConfigParser

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cavmae_ds.cli import app
from tests.ranks import CHECKOUT

COMMANDS = get_command(app).commands
BELOW = [(name, below) for name, command in COMMANDS.items() for below in getattr(command, "commands", ())]


def test_the_version_is_that_of_the_package():
    setup = ConfigParser(interpolation=None)
    setup.read(CHECKOUT / "setup.cfg", "utf-8")
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"cavmae {setup['metadata']['version']}\n")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), *BELOW], ids=" ".join)
def test_h_is_help_for_every_command(command):
    short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output and short.output.startswith("Usage: ")


def test_public_pages_and_recipes_cite_no_file_that_is_not_published():
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").rglob("*.md"), *(CHECKOUT / "launch").rglob("*.yaml")]
    assert [page.name for page in pages if re.search(r"\bspec/", page.read_text("utf-8"))] == []

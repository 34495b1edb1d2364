"""docs/operations.md quotes what the program prints; the curves that it names are held in monitor/test_curves.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.ranks import CHECKOUT

PAGE = CHECKOUT / "docs" / "operations.md"
VALUE = "\0"
"""Stands in a text of the source for what is filled in."""


def first_cells(heading: str) -> list[str]:
    """The first cells of the tables that begin with this heading."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    return [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.splitlines()]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


SENTENCES = [sentence for cell in first_cells("sentence") for sentence in quoted(cell)]


@cache
def texts_by_file() -> dict[Path, str]:
    """The texts in each file of the package, one a line, f-strings and % formats with VALUE for what they fill in."""
    return {path: "\n".join(_texts(path)) for path in Path(CHECKOUT, "cavmae_ds").rglob("*.py")}


def _texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d+)?[sdf]", VALUE, node.value)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_the_page_is_one_that_the_program_prints(sentence):
    parts = [part.strip() for part in sentence.split("...")]
    assert any(all(part in texts for part in parts) for texts in texts_by_file().values())


def test_the_page_has_tables_of_sentences():
    assert len(SENTENCES) > 35

"""A lower layer never imports a higher one; the order stands in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.ranks import CHECKOUT

PACKAGE = CHECKOUT / "cavmae_ds"
PAGE = CHECKOUT / "docs" / "architecture.md"
AT_THE_ROOT = {
    "__init__.py", "__main__.py", "api.py", "atomic_io.py", "cli.py", "errors.py", "retry.py", "terminal.py",
    "train_cli.py",
}  # fmt: skip


def layers() -> dict[str, int]:
    """File or folder below cavmae_ds -> number of its layer, of the table under the heading Layers."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Layers\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", section, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    return {path: int(number) for number, paths in rows for path in re.findall(r"`([^`]+)`", paths)}


def layer_of(path: str, known: dict[str, int]) -> int:
    """By the longest entry that is this file, or a folder above it."""
    fitting = [one for one in known if path == one or (one.endswith("/") and path.startswith(one))]
    assert fitting, f"cavmae_ds/{path} is in no layer of docs/architecture.md"
    return known[max(fitting, key=len)]


def files() -> list[str]:
    """All modules, relative to the package; kernels too, which are a link."""
    below = (folder.rglob("*.py") for folder in (PACKAGE, PACKAGE / "kernels"))
    return sorted({str(path.relative_to(PACKAGE)) for paths in below for path in paths})


def imports_of(path: str) -> Iterator[str]:
    """Files of the package that a module imports anywhere, also inside functions and for type checks."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "cavmae_ds" and (found := file_of(name)) and found != path:
                yield found


def file_of(module: str) -> str | None:
    """The file of a dotted name below cavmae_ds; None for a name inside a module."""
    below = "/".join(module.split(".")[1:])
    candidates = (f"{below}.py", f"{below}/__init__.py".lstrip("/"))
    return next((path for path in candidates if (PACKAGE / path).is_file()), None)


def test_no_module_imports_a_higher_layer():
    known = layers()
    upward = [
        f"{path} (layer {layer_of(path, known)}) imports {other} (layer {layer_of(other, known)})"
        for path in files()
        for other in sorted(set(imports_of(path)))
        if layer_of(other, known) > layer_of(path, known)
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle():
    graph = {path: sorted(set(imports_of(path))) for path in files()}
    done: set[str] = set()

    def visit(path: str, above: tuple[str, ...]) -> None:
        assert path not in above, " -> ".join([*above[above.index(path) :], path])
        if path not in done:
            for other in graph.get(path, []):
                visit(other, (*above, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def test_every_entry_of_the_table_is_there():
    missing = [one for one in layers() if not (PACKAGE / one).exists()]
    assert not missing


def test_no_other_modules_lie_at_the_root():
    assert {path.name for path in PACKAGE.glob("*.py")} <= AT_THE_ROOT


def test_tests_mirror_the_package():
    """A folder of tests below one that is named as a package's folder is one of the package's too."""
    tests = CHECKOUT / "tests"
    own = {"benchmarks", "chaos", "documented", "fuzz", "golden", "interpreted", "multinode"}
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    strays = [str(one) for one in folders if not own & set(one.parts) and not (PACKAGE / one).is_dir()]
    assert not strays


@pytest.mark.parametrize("number", sorted(set(layers().values())))
def test_a_layer_is_of_one_kind(number):
    """No entry of a layer lies inside another one of the same layer."""
    entries = [one for one, of in layers().items() if of == number]
    assert all(len(list(group)) == 1 for _, group in groupby(sorted(entries)))

"""What every benchmark does before it measures, in an environment without the extras of setup.cfg."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.ranks import CHECKOUT, CPU

SOURCES = sorted(CHECKOUT.glob("benchmarks/*.py"))
BENCHMARKS = [path.stem for path in SOURCES if '__name__ == "__main__"' in path.read_text()]
NEED = {("digits",): ("scipy", "digits"), ("loader", "--s3"): ("pytest", "test")}
"""Arguments that need a library, and the extra that brings it."""
RUN = """
import contextlib, io, json, runpy, sys
ended = []
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv, out, err = [name, *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        except Exception as error:
            code = repr(error)
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


def link_packages_without_extras(folder: Path) -> None:
    """Links to the installed packages but those that only extras ask for; their metadata is hidden too."""
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    hidden = set()
    for line in filter(None, "\n".join(setup["options.extras_require"].values()).splitlines()):
        with suppress(PackageNotFoundError):
            hidden |= {file.parts[0] for file in distribution(Requirement(line).name).files or ()}
    assert {"scipy", "sklearn", "pyarrow"} <= hidden
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in hidden:
            (folder / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By command line: code, stdout and stderr of each --help, and of what needs an extra; all in one process."""
    commands, packages = [*([name, "--help"] for name in BENCHMARKS), *NEED], tmp_path_factory.mktemp("packages")
    link_packages_without_extras(packages)
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, json.dumps(commands)],
        cwd=CHECKOUT, env=os.environ | CPU | {"PYTHONPATH": str(packages)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(map(" ".join, commands), json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_needs_no_extra(ended, name):
    code, out, err = ended[f"{name} --help"]
    assert code == 0, (code, err)
    assert "usage" in out.lower() and "--help" in out


@pytest.mark.parametrize("command", NEED)
def test_what_needs_an_extra_names_it_in_one_sentence_before_it_measures(ended, command):
    code, _, err = ended[" ".join(command)]
    library, extra = NEED[command]
    assert code == 2
    assert library in err.splitlines()[-1] and err.endswith(f"pip install -c launch/constraints.txt -e '.[{extra}]'\n")
    assert "Traceback" not in err

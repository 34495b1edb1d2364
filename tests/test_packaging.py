"""The package is whole from a checkout, from an editable install and from a wheel; importing it does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.ranks import CHECKOUT

PROBE = """
import os
import streaming, timm  # they set variables of their own
before = dict(os.environ)
import cavmae_ds.kernels.philox, cavmae_ds.cli, cavmae_ds.tasks.pretrain.task
assert dict(os.environ) == before, "importing changed the environment"
print(cavmae_ds.kernels.philox.__file__)
"""


def imported_from(folder: Path, python_path: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=folder, env=os.environ | {"PYTHONPATH": str(python_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_kernels_are_part_of_the_package_in_a_checkout_that_is_not_installed(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(tmp_path / "clone")], check=True)
    found = imported_from(tmp_path, tmp_path / "clone")
    assert Path(found).resolve() == tmp_path / "clone" / "kernels" / "philox.py"


def test_kernels_are_part_of_the_package_in_this_editable_install(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", "import cavmae_ds.kernels.philox as it; print(it.__file__)"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(finished.stdout.strip()).resolve() == CHECKOUT / "kernels" / "philox.py", finished.stderr


def test_a_wheel_holds_every_module_every_template_and_the_kernels_under_their_name(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(CHECKOUT)], capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    sources = {
        str(path.relative_to(CHECKOUT))
        for ending in ("py", "html")
        for path in (CHECKOUT / "cavmae_ds").rglob(f"*.{ending}")
    }
    sources |= {f"cavmae_ds/{path.relative_to(CHECKOUT)}" for path in (CHECKOUT / "kernels").rglob("*.py")}
    assert sources <= names
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)
    found = imported_from(tmp_path, tmp_path / "unpacked")
    assert Path(found) == tmp_path / "unpacked" / "cavmae_ds" / "kernels" / "philox.py"

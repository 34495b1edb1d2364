"""The installed packages against what pip says of them and the set tried together (launch/constraints.txt)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.errors import CHECKOUT, pip_install

MATCHED = ("torch", "torchvision", "torchaudio", "triton", "deepspeed", "mosaicml-streaming", "numpy")
"""Made for each other by minor version."""
_SHOWN = 6


def check_versions() -> list[Finding]:
    """What `pip check` says, the matched set; a package that is broken by its neighbour fails to import."""
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    found = [requirements_met([] if checked.returncode == 0 else (checked.stdout or checked.stderr).splitlines())]
    found += as_constrained(constraints(CHECKOUT), installed_packages())
    return [*found, *(importable(name) for name in ("torchvision", "torchaudio"))]


def requirements_met(broken: Sequence[str]) -> Finding:
    """Packages that are missing or of a version that is not allowed, a line of pip for each."""
    ours = [line for line in broken if line.startswith("cavmae-ds ")]
    if ours:
        return fix("packages", "; ".join(ours), pip_install("cavmae-ds"))
    return note("packages", _some("; ", broken)) if broken else ok("packages", "pip check finds all requirements met")


def installed_packages() -> dict[str, str]:
    """Name -> version of what is imported: the first on the path, for setuptools brings copies of its own."""
    versions: dict[str, str] = {}
    for found in distributions():
        versions.setdefault(canonicalize_name(found.metadata["Name"]), found.version)
    return versions


def constraints(checkout: Path) -> list[Requirement]:
    """The exact versions that were tried together; none without a checkout."""
    path = checkout / "launch" / "constraints.txt"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def as_constrained(wanted: Iterable[Requirement], installed: Mapping[str, str]) -> list[Finding]:
    """The matched set must be the one tried together, up to its last number; others are only listed."""
    apart: dict[str, str] = {}
    others, matched = [], []
    for one in wanted:
        name = canonicalize_name(one.name)
        if name not in installed or (one.marker and not one.marker.evaluate()):
            continue
        have, tried = Version(installed[name]), Version(next(iter(one.specifier)).version)
        if name in MATCHED:
            matched.append(f"{name} {have}")
        if name in MATCHED and have.release[:2] != tried.release[:2]:
            apart[str(one)] = f"{name} {have} instead of {tried}"
        elif have.public != tried.public:
            others.append(f"{name} {have} instead of {tried}")
    found = []
    if apart:
        found.append(fix("matched set", "; ".join(apart.values()), pip_install(*apart)))
    elif matched:
        found.append(ok("matched set", ", ".join(matched)))
    if others:
        found.append(note("other versions", f"not those tried together: {_some(', ', others)}"))
    return found


def _some(separator: str, texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(texts[:_SHOWN]) + more


def importable(name: str) -> Finding:
    """torchvision and torchaudio refuse a torch that was built for another CUDA."""
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return fix(name, f"cannot be loaded beside this torch: {said}", pip_install("torch", name))
    return ok(name, "loads beside this torch")

"""The installed packages against the set that was made to fit together (setup.cfg, launch/constraints.txt)."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import distributions, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.errors import CHECKOUT, pip_install

MATCHED = ("torch", "torchvision", "torchaudio", "triton", "deepspeed", "mosaicml-streaming", "numpy")
"""Made for each other by minor version (spec/engine-notes.md 8)."""
_SHOWN = 6


def check_versions(checkout: Path = CHECKOUT) -> list[Finding]:
    """Python, requirements, and the matched set; a package that is broken by its neighbour fails to import."""
    pythons, wanted = declared(checkout)
    installed = installed_packages()
    return [
        python_version(platform.python_version(), pythons),
        requirements_met(wanted, installed),
        *as_constrained(constraints(checkout), installed),
        *(importable(name, installed[name]) for name in ("torchvision", "torchaudio") if name in installed),
    ]


def installed_packages() -> dict[str, str]:
    """Name -> version of what is imported: the first on the path, for setuptools brings copies of its own."""
    versions: dict[str, str] = {}
    for found in distributions():
        versions.setdefault(canonicalize_name(found.metadata["Name"]), found.version)
    return versions


def declared(checkout: Path) -> tuple[SpecifierSet, list[Requirement]]:
    """Pythons and packages that ours needs: as the checkout says, or the installed package where there is none."""
    setup = checkout / "setup.cfg"
    if setup.is_file():
        parser = ConfigParser(interpolation=None)
        parser.read(setup, "utf-8")
        options = parser["options"]
        pythons, lines = options["python_requires"], options["install_requires"].strip().splitlines()
    else:
        ours = metadata("cavmae-ds")
        pythons = ours["Requires-Python"]
        lines = [line for line in ours.get_all("Requires-Dist", []) if "extra ==" not in line]
    return SpecifierSet(pythons), [Requirement(line) for line in lines]


def python_version(version: str, allowed: SpecifierSet) -> Finding:
    """Whether the package runs on this Python."""
    if version in allowed:
        return ok("Python", version)
    return fix("Python", f"{version}, needs {allowed}", "make the environment with Python 3.11: launch/quickstart.sh")


def constraints(checkout: Path) -> list[Requirement]:
    """The exact versions that were tried together; none without a checkout."""
    path = checkout / "launch" / "constraints.txt"
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def requirements_met(wanted: Iterable[Requirement], installed: Mapping[str, str]) -> Finding:
    """Packages that are missing, or of a version that is not allowed."""
    problems, packages, count = [], [], 0
    for one in wanted:
        if one.marker and not one.marker.evaluate():
            continue
        count += 1
        version = installed.get(canonicalize_name(one.name))
        if version is None:
            problems.append(f"{one.name} is not installed")
        elif not one.specifier.contains(version, prereleases=True):
            problems.append(f"{one.name} {version}, needs {one.specifier}")
        else:
            continue
        packages.append(f"{one.name}{one.specifier}")
    if problems:
        return fix("packages", "; ".join(problems), pip_install(*packages))
    return ok("packages", f"all {count} requirements are met")


def as_constrained(wanted: Iterable[Requirement], installed: Mapping[str, str]) -> list[Finding]:
    """The matched set must be the one tried together, up to its last number; others are only said."""
    apart: list[str] = []
    packages: list[str] = []
    others: list[str] = []
    matched: list[str] = []
    for one in wanted:
        name = canonicalize_name(one.name)
        if name not in installed or (one.marker and not one.marker.evaluate()):
            continue
        have, tried = Version(installed[name]), Version(next(iter(one.specifier)).version)
        if name in MATCHED:
            matched.append(f"{name} {have}")
        if have.public == tried.public:
            continue
        fits = name not in MATCHED or have.release[:2] == tried.release[:2]
        (others if fits else apart).append(f"{name} {have} instead of {tried}")
        if not fits:
            packages.append(str(one))
    found = [fix("matched set", "; ".join(apart), pip_install(*packages))] if apart else []
    if matched and not apart:
        found.append(ok("matched set", ", ".join(matched)))
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        found.append(note("other versions", f"not those tried together: {', '.join(others[:_SHOWN])}{more}"))
    return found


def importable(name: str, version: str) -> Finding:
    """torchvision and torchaudio refuse a torch that was built for another CUDA."""
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        do = pip_install("torch", name)
        return fix(name, f"{version} cannot be loaded beside this torch: {said}", do)
    return ok(name, f"{version} loads beside this torch")

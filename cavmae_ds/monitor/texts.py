"""What a run is made of, as texts: its settings, what follows from them, versions, machines, how it was started."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from cavmae_ds.config.load import to_yaml
from cavmae_ds.config.on_resume import OnResume, settings, values_by_key
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import without_secrets
from cavmae_ds.tasks.run_plan import RunPlan

PACKAGES = ("torch", "torchvision", "triton", "deepspeed", "mosaicml-streaming", "timm", "numpy", "av", "tensorboard")
SHOWN_VARIABLES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "OMP_", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
"""Of the environment only what begins so is shown: credentials are in there too."""
CHECKOUT = Path(__file__).resolve().parents[2]
NOT_LISTED = (OnResume.LOCATION, OnResume.START, OnResume.FREE)
"""Kinds of settings that do not decide what is learnt from the clips."""
ALWAYS_LISTED = {"optim.learning_rate", "train.global_batch"}


class Machine(NamedTuple):
    """Where a rank runs."""

    host: str
    device: str


def this_machine(world: World) -> Machine:
    """This rank's."""
    device = "CPU"
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return Machine(socket.gethostname(), device)


def texts(cfg: RunConfig, numbers: RunPlan, machines: Sequence[Machine]) -> dict[str, str]:
    """Tag -> Markdown."""
    return {
        "run/config": as_code(to_yaml(cfg)),
        "run/numbers": as_code(numbers.lines().replace("# ", "")),
        "run/environment": as_code("\n".join(f"{name}: {value}" for name, value in environment(machines).items())),
    }


def environment(machines: Sequence[Machine]) -> dict[str, str]:
    """Command, commit, versions, machines and the variables that matter to them; no secrets."""
    hosts: dict[Machine, list[int]] = {}
    for rank, machine in enumerate(machines):
        hosts.setdefault(machine, []).append(rank)
    return {
        "command": without_secrets(shlex.join([Path(sys.executable).name, *sys.argv])),
        "folder": str(Path.cwd()),
        "commit": _commit(CHECKOUT),
        **{f"ranks {_span(ranks)}": f"{machine.host}, {machine.device}" for machine, ranks in hosts.items()},
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "cuda": str(torch.version.cuda),
        **{
            name: without_secrets(value)
            for name, value in sorted(os.environ.items())
            if name.startswith(SHOWN_VARIABLES)
        },
    }


def hyperparameters(cfg: RunConfig) -> dict[str, float | str]:
    """`optim.learning_rate` -> 1e-4, and so on: what a run is listed with beside other runs.

    Settings that are not the default, so that the columns are few; where one is empty, it is.
    """
    given = values_by_key(cfg.model_dump(mode="json"))
    values: dict[str, float | str] = {}
    for key, kind, default in settings(type(cfg)):
        if kind not in NOT_LISTED and (key in ALWAYS_LISTED or given[key] != default):
            value = given[key]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)  # TensorBoard shows 0.0000
            values[key] = value if number else str(value)
    return values


def as_code(text: str) -> str:
    """A Markdown block that keeps lines as they are."""
    return "".join(f"    {line}\n" for line in without_secrets(text).splitlines())


def _commit(checkout: Path) -> str:
    """Of the checkout this is run from, with a mark where files differ from it."""
    if not (checkout / ".git").exists():
        return "none: not run from a git checkout"
    try:
        asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _span(ranks: Sequence[int]) -> str:
    """0-7 for eight that follow one another."""
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)) and len(ranks) > 1:
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))

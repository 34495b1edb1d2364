"""The hosts of a run: the hostfile, who answers, and a connection to the program that runs a host's ranks."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cavmae_ds.errors import ConfigError, shortened
from cavmae_ds.launcher import host as host_program

HERE = "localhost"
CONNECTION_LOST = 255
NO_PROGRAM = 127

# What ranks elsewhere need of this environment. It goes through the connection: no process list shows it.
FORWARDED = ("AWS_", "S3_", "DS_", "OMP_", "NCCL_", "GLOO_", "TORCH", "TRITON_", "PYTHON", "UCX_", "FI_", "LD_LIBRARY_")

_CONNECT_S = 10
_KEEPALIVE_S = 5
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_][\w.:-]*)\s+slots=(?P<slots>[1-9]\d{0,5})\s*(#.*)?")


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it has room for."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a hostfile: lines `name slots=8`, comments after #. Raises ConfigError naming file and line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hostfile {path} cannot be read: {error}") from error
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        if not line.split("#")[0].strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise ConfigError(
                f"--hostfile {path} line {number} must read `name slots=8`, got {shortened(line.strip())!r}"
            )
        if match["name"] in hosts:
            raise ConfigError(
                f"--hostfile {path} line {number}: {shortened(match['name'])} is there already; give it all its slots"
            )
        hosts[match["name"]] = Host(match["name"], int(match["slots"]))
    if not hosts:
        raise ConfigError(f"--hostfile {path} names no host; write lines `name slots=8`")
    return list(hosts.values())


def unreachable(hosts: Sequence[Host]) -> dict[str, str]:
    """Hosts on which nothing can be started now, each with what ssh said. Takes some 10 s at most.

    Raises ConfigError if a host answers but has no such Python.
    """
    with ThreadPoolExecutor(max_workers=64) as pool:
        tried = list(pool.map(_try, hosts))
    for host, (code, _) in zip(hosts, tried, strict=True):
        if code == NO_PROGRAM:
            raise ConfigError(f"{host.name} has no {sys.executable}; the environment must have one path on all hosts")
    return {host.name: said for host, (code, said) in zip(hosts, tried, strict=True) if code}


def _try(host: Host) -> tuple[int, str]:
    if host.name == HERE:
        return 0, ""
    try:
        tried = subprocess.run(
            [*_ssh(host.name, _CONNECT_S), shlex.join([sys.executable, "-c", ""])],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * _CONNECT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return CONNECTION_LOST, f"no answer within {2 * _CONNECT_S} s"
    return tried.returncode, tried.stderr.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"


class Connection:
    """The program of host.py on a host, through ssh or, on this one, directly."""

    def __init__(self, host: Host, command: Sequence[str], silence_s: float, grace_s: float) -> None:
        self.name = host.name
        program = [sys.executable, host_program.__file__]
        remote = host.name != HERE
        self._process = subprocess.Popen(
            [*_ssh(host.name, silence_s), shlex.join(program)] if remote else program,
            stdin=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for us to pass on
        )
        order: Mapping[str, Any] = {
            "command": list(command),
            "cwd": str(Path.cwd()),
            "environment": _environment(remote),
            "relay": remote,
            "silence_s": silence_s,
            "grace_s": grace_s,
        }
        self._write(json.dumps(order))

    @property
    def code(self) -> int | None:
        """What the host's ranks ended with, 255 if the connection did; None as long as they run."""
        return self._process.poll()

    def tell(self, number: int) -> None:
        """Send the ranks a signal; 0 is a sign of life."""
        self._write(str(number))

    def cut(self) -> None:
        """Cut the connection; the ranks, if they are still there, take it as a request to stop."""
        self._process.kill()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # ended; `code` tells
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


def _ssh(name: str, silence_s: float) -> list[str]:
    """Asks for nothing, and notices within about silence_s that the other end is gone."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": _CONNECT_S,
        "ServerAliveInterval": _KEEPALIVE_S,
        "ServerAliveCountMax": math.ceil(silence_s / _KEEPALIVE_S),
    }
    return ["ssh", *(f"-o{option}={value}" for option, value in options.items()), "--", name]


def _environment(remote: bool) -> dict[str, str]:
    """What the ranks get on top of their host's environment; the package is found where it is here."""
    package = str(Path(__file__).resolve().parents[2])
    forwarded = {name: value for name, value in os.environ.items() if remote and name.startswith(FORWARDED)}
    return forwarded | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}

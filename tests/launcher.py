"""Start real ranks with the real `deepspeed` launcher."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PRETRAIN = CHECKOUT / "launch" / "pretrain.py"


def environment(scratch: Path) -> dict[str, str]:
    """Everything a rank of a test needs: CPU, one thread (so that sums are the same each time), its own scratch."""
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": _short_name(scratch),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@cache
def _short_name(scratch: Path) -> str:
    """A temporary folder for this scratch alone: pytest's own names are too long for the sockets of loader workers."""
    folder = tempfile.mkdtemp(prefix="ranks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def command(ranks: int, script: Path, *arguments: str) -> list[str]:
    """The command line a user would type, without the shell."""
    return ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(_free_port()), str(script), *arguments]


def launch(
    ranks: int, script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run to the end; what was printed (both streams) is in stdout."""
    return subprocess.run(
        command(ranks, script, *arguments),
        env=environment(scratch),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
    )


def _free_port() -> int:
    """A port of its own for each run, for others on this machine may hold DeepSpeed's default.

    From below the range that outgoing connections are given theirs from: some seconds pass until the ranks listen.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 30000")

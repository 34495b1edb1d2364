"""Start real ranks with the real `deepspeed` launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PRETRAIN = CHECKOUT / "launch" / "pretrain.py"


def environment(scratch: Path) -> dict[str, str]:
    """Everything a rank of a test needs: CPU, one thread (so that sums are the same each time), its own scratch."""
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(scratch),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def command(ranks: int, script: Path, *arguments: str) -> list[str]:
    """The command line a user would type, without the shell."""
    with socket.socket() as probe:  # a port of its own: other runs on this machine may hold DeepSpeed's default
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(port), str(script), *arguments]


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

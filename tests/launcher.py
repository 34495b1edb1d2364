"""Start real ranks: with the real `deepspeed` launcher, or forked from a process that has imported everything.

`launch(2, SCRIPT, "argument", scratch=tmp_path)` types the command of a user. Its ranks and the launcher all import
torch and DeepSpeed anew: some 20 CPU seconds for two ranks. It is for tests of how a run starts, is told to stop, ends.

`fork_ranks(2, SCRIPT, "argument", scratch=tmp_path)` is the same call for tests of mathematics and data: it computes
bit by bit the same and leaves with the same exit code, without the imports. `start_ranks` is for a test that does
something meanwhile: it returns at once, `.pids` are the ranks in order, `.printed` is what they have said so far, and
`.wait()` must be called before the next ranks are forked. What differs: ranks share one hash seed, the launcher's own
lines are missing, and what libraries read while they are loaded must be as in the test process (else it is refused).
"""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PRETRAIN = CHECKOUT / "launch" / "pretrain.py"
READ_AT_START = ("CUDA_", "DS_", "LD_", "MALLOC_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TRITON_")
"""Environment variables that libraries read once, while they are loaded."""


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


class ForkedRanks:
    """Ranks that are running: the process id of each, which leads a process group with the rank's workers."""

    def __init__(self, request: dict, zygote: subprocess.Popen[bytes]):
        self._arguments, self._output, self._zygote = request["arguments"], Path(request["output"]), zygote
        self.pids: list[int] = _ask(zygote, request)["pids"]

    @property
    def printed(self) -> str:
        """Both streams of all ranks until now."""
        return self._output.read_text()

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """When all ranks have ended: as launch() would return, or TimeoutExpired, with no rank left."""
        in_time = select.select([self._zygote.stdout], [], [], seconds)[0]
        if not in_time:
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        returncode = _answer(self._zygote)["returncode"]
        if not in_time:
            raise subprocess.TimeoutExpired(self._arguments, seconds, self.printed)
        return subprocess.CompletedProcess(self._arguments, returncode, self.printed)


def start_ranks(ranks: int, script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT) -> ForkedRanks:
    """Fork ranks that run the script as the launcher's would."""
    given = environment(scratch)
    zygote, started_with = _zygote()
    late = {name for name in given.keys() | started_with.keys() if name.startswith(READ_AT_START)}
    assert all(given.get(name) == started_with.get(name) for name in late), f"use launch() to change one of {late}"
    handle, output = tempfile.mkstemp(dir=given["TMPDIR"], suffix=".log")
    os.close(handle)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
    host = {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": str(ranks)}
    request = {
        "ranks": ranks,
        "script": str(script),
        "arguments": arguments,
        "environment": given | place | host,
        "folder": str(cwd),
        "output": output,
    }
    return ForkedRanks(request, zygote)


def fork_ranks(
    ranks: int, script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """As launch(), without the imports; see the top of this file for when to use it."""
    return start_ranks(ranks, script, *arguments, scratch=scratch, cwd=cwd).wait(seconds)


@cache
def _zygote() -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """One for the whole test process; it ends when this process does. And the environment that it was started in."""
    given = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    zygote = subprocess.Popen(
        [sys.executable, "-u", str(Path(__file__).with_name("zygote.py"))],
        env=given, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    return zygote, dict(given)


def _ask(zygote: subprocess.Popen[bytes], request: dict) -> dict:
    assert zygote.stdin
    zygote.stdin.write(json.dumps(request).encode() + b"\n")
    return _answer(zygote)


def _answer(zygote: subprocess.Popen[bytes]) -> dict:
    assert zygote.stdout
    line = zygote.stdout.readline()
    assert line, "the process that forks ranks has ended; it says why on its standard error"
    return json.loads(line)


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

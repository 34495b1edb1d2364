"""Start real ranks and commands: as a user does, or forked from a process that has imported everything.

`launch(2, SCRIPT, "argument", scratch=tmp_path)` types the command of a user. Its ranks and the launcher all import
torch and DeepSpeed anew: some 20 CPU seconds for two ranks. It is for tests of how a run starts, is told to stop, ends.

`fork_ranks(2, SCRIPT, "argument", scratch=tmp_path)` is the same call for tests of mathematics and data: it computes
bit by bit the same and leaves with the same exit code, without the imports. `start_ranks` is for a test that does
something meanwhile: it returns at once, `.pids` are the ranks in order, `.printed` is what they have said so far, and
`.wait()` must be called before the next ranks are forked. What differs: ranks share one hash seed, the launcher's own
lines are missing, and what libraries read while they are loaded must be as in the test process (else it is refused).

`fork_cavmae("prepare", folder, "--out", out)` is the command `cavmae`, `fork_script(SCRIPT)` any other.
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
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
PRETRAIN = CHECKOUT / "launch" / "pretrain.py"
CAVMAE = Path(sysconfig.get_path("scripts")) / "cavmae"
CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
"""Environment of all that runs here; with one thread sums are the same each time."""
READ_AT_START = ("CUDA_", "DS_", "LD_", "MALLOC_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TRITON_")
"""Environment variables that libraries read once, while they are loaded."""


def environment(scratch: Path) -> dict[str, str]:
    """Everything a rank of a test needs."""
    return os.environ | {
        **CPU,
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


class Forked:
    """Forked processes that are running: `pids`, in order, each of which leads a group with the workers it starts."""

    def __init__(self, processes: list[dict[str, Any]]):
        """Fork them; fork_server.py says what describes a process."""
        for left_behind in list(_running):  # by a test that failed before it waited
            left_behind.end()
        self._processes = processes
        self.returncodes: list[int] = []
        """Of each run, when all have ended."""
        self.pids: list[int] = _ask(processes)["pids"]
        _running.append(self)

    @property
    def printed(self) -> str:
        """What the first one has written to its stdout so far; ranks write all they say to one file."""
        return Path(self._processes[0]["stdout"]).read_text()

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """When all have ended: the first exit code that is not 0; or TimeoutExpired, and none is left."""
        arguments, server = self._processes[0]["arguments"], _fork_server()[0]
        answer = select.poll()  # not select(), which knows no file descriptor above 1023
        answer.register(server.stdout, select.POLLIN)
        in_time = answer.poll(seconds * 1000)
        if not in_time:
            self.end()
            raise subprocess.TimeoutExpired(arguments, seconds, self.printed)
        returncode = self._ended()
        errors = Path(self._processes[0]["stderr"]).read_text()
        return subprocess.CompletedProcess(arguments, returncode, self.printed, errors)

    def end(self) -> None:
        """Kill what is running, workers too, if anything is."""
        if self not in _running:
            return
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._ended()

    def _ended(self) -> int:
        self.returncodes = _answer()["returncodes"]
        _running.remove(self)
        return next((code for code in self.returncodes if code), 0)


_running: list[Forked] = []  # at most one: the server takes the next request when all of the last have ended


def start_ranks(ranks: int, script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT) -> Forked:
    """Fork ranks that run the script as the launcher's would."""
    return start_runs([ranks], script, *arguments, scratch=scratch, cwd=cwd)


def start_runs(
    ranks_of_runs: Sequence[int], script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT
) -> Forked:
    """Fork the ranks of several runs at the same moment; they write to one file."""
    output, processes = _empty_file(), []
    for run, ranks in enumerate(ranks_of_runs):
        told = environment(scratch) | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(ranks),
            "CROSS_RANK": "0",
            "CROSS_SIZE": "1",
            "LOCAL_SIZE": str(ranks),
        }
        processes += [
            {
                "run": run,
                "arguments": [str(script), f"--local_rank={rank}", *arguments],
                "environment": told | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                "folder": str(cwd),
                "stdout": output,
                "stderr": output,
            }
            for rank in range(ranks)
        ]
    return Forked(processes)


def fork_ranks(
    ranks: int, script: Path, *arguments: str, scratch: Path, cwd: Path = CHECKOUT, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """As launch(), without the imports; see the top of this file for when to use it."""
    return start_ranks(ranks, script, *arguments, scratch=scratch, cwd=cwd).wait(seconds)


def fork_cavmae(*arguments: object, cwd: Path = CHECKOUT, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """The command `cavmae` with these arguments, as text; stdout and stderr apart."""
    return fork_script(CAVMAE, *arguments, cwd=cwd, seconds=seconds)


def fork_script(
    script: Path, *arguments: object, cwd: Path = CHECKOUT, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `python script arguments` would do in this environment, on one thread; stdout and stderr apart."""
    process = {
        "arguments": [str(script), *map(str, arguments)],
        "environment": os.environ | CPU,
        "folder": str(cwd),
        "stdout": _empty_file(),
        "stderr": _empty_file(),
        "quick_end": True,
    }
    return Forked([process]).wait(seconds)


def _empty_file() -> str:
    handle, name = tempfile.mkstemp(prefix="printed-")
    os.close(handle)
    atexit.register(Path(name).unlink, missing_ok=True)
    return name


@cache
def _fork_server() -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """One for the whole test process; it ends when this process does. And the environment that it was started in."""
    given = os.environ | CPU
    server = subprocess.Popen(
        [sys.executable, "-u", str(Path(__file__).with_name("fork_server.py"))],
        env=given, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    return server, dict(given)


def _ask(processes: list[dict[str, Any]]) -> dict[str, Any]:
    server, started_with = _fork_server()
    for given in (process["environment"] for process in processes):
        late = {name for name in given.keys() | started_with.keys() if name.startswith(READ_AT_START)}
        changed = {name for name in late if given.get(name) != started_with.get(name)}
        assert not changed, f"{changed} would be read too late: start a new process"
    assert server.stdin
    server.stdin.write(json.dumps(processes).encode() + b"\n")
    return _answer()


def _answer() -> dict[str, Any]:
    stdout = _fork_server()[0].stdout
    line = stdout.readline() if stdout else b""
    assert line, "the fork server has ended; it says why on its standard error"
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

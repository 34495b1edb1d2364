"""Forks processes from one that has imported everything; tests/ranks.py starts it and talks to it.

Requests come through stdin, one JSON object a line: a list of processes, each with its "arguments" (first the script),
"environment", "folder", the files for its "stdout" and "stderr", perhaps "quick_end" (see run_and_end_quickly), and
perhaps the number of its "run": the failure of a process ends those of its run. Each is answered with two lines:
{"pids": [...]} at once, and {"returncodes": [...]}, one of each run, when all have ended. It ends with its stdin, and
what it has forked with it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

GRACE_S = 1.0
"""The launcher looks once a second whether a rank has failed."""
END_S = 30.0
"""And so long it waits for the others to end after SIGTERM."""


def import_everything() -> None:
    """What takes a process its first seconds."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    for name in (
        "cavmae_ds.cli",
        "cavmae_ds.train_cli",
        "cavmae_ds.tasks.pretrain.task",
        "cavmae_ds.data.prepare.commands",
        "cavmae_ds.evaluation.classification",
        "cavmae_ds.evaluation.embedding",
        "cavmae_ds.plan.command",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # every engine asks whether it has one; brings torch's compiler
        "matplotlib.figure",
        "torch.utils.tensorboard",
    ):
        importlib.import_module(name)
    gc.freeze()  # else each process looks through half a million objects when it ends: two seconds


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more: None. In a forked process, return what was asked of it instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while importing is no answer
    import_everything()
    while line := sys.stdin.readline():
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "only a process of one thread may be forked"
        runs: dict[int, int] = {}
        for process in json.loads(line):
            pid = os.fork()
            if not pid:
                answers.close()
                become(process)
                return process
            os.setpgid(pid, pid)  # here and in the forked one, whoever is first
            runs[pid] = process.get("run", 0)
        print(json.dumps({"pids": list(runs)}), file=answers, flush=True)
        try:
            returncodes = wait(runs)
        finally:
            signal_all(runs, signal.SIGKILL)
        print(json.dumps({"returncodes": returncodes}), file=answers, flush=True)
    return None


def become(process: dict[str, Any]) -> None:
    """Make this forked process what a new one would be before it runs its script."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(process["environment"])
    os.chdir(process["folder"])
    for stream, path in ((sys.stdout, process["stdout"]), (sys.stderr, process["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
        stream.reconfigure(line_buffering=True, write_through=False)  # ranks share a file: whole lines, not pieces
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    sys.argv = process["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    tempfile.tempdir = None  # found anew from TMPDIR
    np.random.seed()  # a new process draws numbers of its own; Python's random sees to it by itself
    torch.seed()


def wait(runs: dict[int, int]) -> list[int]:
    """Until all have ended: of each run 0, or what the first one to fail left with; its others are then ended."""
    alive, returncodes, ends = set(runs), dict.fromkeys(sorted(set(runs.values())), 0), []
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            alive.discard(pid)
            code, run = os.waitstatus_to_exitcode(status), runs[pid]
            if code and not returncodes[run]:
                returncodes[run], now = code % 256, time.monotonic()
                ends += [(now + GRACE_S, run, signal.SIGTERM), (now + GRACE_S + END_S, run, signal.SIGKILL)]
                ends.sort()
            continue
        if ends and time.monotonic() > ends[0][0]:
            _, run, number = ends.pop(0)
            signal_all({pid for pid in alive if runs[pid] == run}, number)
        if select.select([sys.stdin], [], [], 0.02)[0]:  # nobody asks while something runs: whoever would is gone
            sys.exit(1)
    return list(returncodes.values())


def signal_all(pids: Iterable[int], number: int) -> None:
    """To forked processes and to the workers they have started."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.killpg(pid, number)


def run_and_end_quickly(script: str) -> None:
    """Run a script and end as the interpreter does, up to where it would free every object: half a second."""
    code: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit((code or 0) % 256)


if __name__ == "__main__":
    process = serve()
    if process and process.get("quick_end"):
        run_and_end_quickly(process["arguments"][0])
    elif process:
        runpy.run_path(process["arguments"][0], run_name="__main__")

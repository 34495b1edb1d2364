"""A process of its own that kills the frozen ranks of a host when the rank that gave them up has ended.

Not before: deepspeed's launcher ends with the exit code of the first rank that it sees ended, which is to be 69 and not
that of a kill. It would itself wait 30 s before it kills a frozen rank.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from cavmae_ds.fault_tolerance.shared_memory_leftovers import remove_leftovers

_PATIENCE_S = 15.0
"""For a parent that asks for no exit code: until then the rank is a zombie."""
_LOOK_S, _END_S = 0.1, 3.0


def kill_when_ended(parent: psutil.Process, doomed: Sequence[psutil.Process]) -> None:
    """Start the process; `doomed` are killed, and their shared memory is removed, when `parent` is gone."""
    pids = [str(process.pid) for process in (parent, *doomed)]
    package = str(Path(__file__).resolve().parents[2])
    nothing = subprocess.DEVNULL  # a reader of our output does not wait for it
    subprocess.Popen(
        [sys.executable, "-m", __name__, *pids],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))},
        stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True,
    )  # fmt: skip


def main() -> None:
    """Arguments: the process id of the rank that ends, then those to be killed."""
    parent, *pids = map(int, sys.argv[1:])
    doomed = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    until = time.monotonic() + _PATIENCE_S
    while psutil.pid_exists(parent) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(doomed, timeout=_END_S)
    remove_leftovers()


if __name__ == "__main__":
    main()

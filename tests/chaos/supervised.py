"""A run under its supervisor as the tests see it: its processes, how far it is, what it has printed."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cavmae_ds.checkpoint import checkpoint_root, whole_checkpoints
from tests.chaos.noting_rank import PACE
from tests.ranks import CHECKOUT, environment

SUPERVISOR = Path(__file__).with_name("supervisor.py")
SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 400.0
START_AGAIN = (75, -9)
"""Exit codes after which a person, or a scheduler, starts the same command again."""


class SupervisedRun:
    """Two ranks, started again by their supervisor, and that by us."""

    def __init__(self, run_file: Path, folder: Path, pace_s: float, *overrides: str):
        """folder: for the run and what it notes. pace_s: seconds added to each step until hurry()."""
        self.run_dir, self._folder = folder / "run", folder
        self._command = [
            *(sys.executable, str(SUPERVISOR), str(folder), str(run_file), f"run_dir={self.run_dir}"), *overrides
        ]  # fmt: skip
        self._log = folder / "printed"
        self._seen: set[psutil.Process] = set()
        self._shared_memory: set[str] = set()
        self.starts = 0
        (folder / PACE).write_text(str(pace_s))
        self.start()

    @property
    def printed(self) -> str:
        """All that was said since the first start."""
        return self._log.read_text()

    @property
    def saved(self) -> int:
        """Steps in the newest whole checkpoint on the disk."""
        whole = whole_checkpoints(self.run_dir)
        return int(whole[-1].name.removeprefix("step-")) if whole else 0

    def start(self) -> None:
        """Start the same command (again), when nothing is left of the one before."""
        _, alive = psutil.wait_procs(self._seen, timeout=PATIENCE_S)
        assert not alive, (alive, self.printed[-3000:])
        self.starts += 1
        with self._log.open("a") as log:
            self.supervisor = psutil.Popen(
                self._command, env=environment(self._folder), cwd=CHECKOUT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All there are now, the supervisor first; what is seen here must be gone in the end."""
        found = [self.supervisor, *self.supervisor.children(recursive=True)]
        self._seen.update(found)
        self._shared_memory.update(path.name.partition("_")[0] for path in self._owners())
        return found

    def ranks(self) -> list[psutil.Process]:
        """In order."""
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                rank = re.search(r"noting_rank\.py --local_rank=(\d)", " ".join(process.cmdline()))
                if rank and process.parent() not in found.values():
                    found[int(rank[1])] = process
        return [found[rank] for rank in sorted(found)]

    def launcher(self) -> psutil.Process:
        """DeepSpeed's, the parent of the ranks."""
        return self.ranks()[0].parent()

    def workers(self) -> list[psutil.Process]:
        """Of all ranks."""
        return [
            child for rank in self.ranks() for child in rank.children() if "noting_rank.py" in " ".join(child.cmdline())
        ]

    def until(self, happened: Callable[[], bool], what: str, look_s: float = 0.05) -> None:
        """Wait, and start the command again when it has stopped early or was killed."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            code = self.supervisor.poll()
            assert code is None or code in START_AGAIN, f"{what}: ended with {code}\n{self.printed[-3000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:.0f} s\n{self.printed[-3000:]}"
            if code is not None:
                self.start()
            time.sleep(look_s)

    @contextmanager
    def says(self, sentence: str) -> Iterator[None]:
        """Afterwards wait until the run has said this once more than before."""
        before = self.printed.count(sentence)
        yield
        self.until(lambda: self.printed.count(sentence) > before, f"to hear {sentence!r}")

    def until_saved(self) -> None:
        """Wait for a new checkpoint, and two ranks with a worker each."""
        before = self.saved
        self.until(lambda: self.saved > before, "the next checkpoint")
        self.until(lambda: len(self.workers()) == 2, "ranks and workers")

    def finish(self) -> int:
        """Let it run to its end; the exit code."""
        (self._folder / PACE).unlink()
        self.processes()
        return self.supervisor.wait(PATIENCE_S)

    def left_behind(self) -> list[str]:
        """Processes, shared memory and halves of checkpoints that are still there."""
        _, alive = psutil.wait_procs(self._seen, timeout=30)
        names = [path.name for path in SHARED_MEMORY.iterdir() if path.name.partition("_")[0] in self._shared_memory]
        pids = {f"torch_{process.pid}" for process in self._seen}
        names += [path.name for path in SHARED_MEMORY.glob("torch_*") if path.name.rpartition("_")[0] in pids]
        partial = [path.name for path in checkpoint_root(self.run_dir).glob("*.partial")]
        return [*map(str, alive), *names, *(path.name for path in self._owners()), *partial]

    def end(self) -> None:
        """Kill what is running, after a test that failed."""
        with suppress(psutil.NoSuchProcess):
            self.processes()
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._seen, timeout=30)

    def _owners(self) -> list[Path]:
        """Files in shared memory that say that they are of this run."""
        folder, found = environment(self._folder)["TMPDIR"], []
        for path in SHARED_MEMORY.glob("*_owner_*"):
            with suppress(OSError):  # removed meanwhile
                if path.read_text() == folder:
                    found.append(path)
        return found

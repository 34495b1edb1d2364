"""Real runs under the real launcher are stopped in every way, and go on as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from tests.data.small_shards import small_shards
from tests.engine.test_survival import RUN, curves, rank_process
from tests.launcher import CHECKOUT, PRETRAIN, command, environment, fork_ranks, start_ranks

pytestmark = pytest.mark.slow

STEPS = 60
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_shards) -> Path:
    path = tmp_path_factory.mktemp("stopping") / "run.yaml"
    path.write_text(RUN.format(shards=tiny_shards, steps=STEPS))
    return path


class Running:
    """A run of two ranks under `deepspeed`, alone in its process group, and what became of it."""

    def __init__(self, run_file: Path, run_dir: Path, log: Path, *overrides: str):
        self.run_dir, self._log = run_dir, log
        self._environment = environment(run_file.parent)
        self._began_with = newest(run_dir)
        self.outer = subprocess.Popen(
            command(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", *overrides), env=self._environment, cwd=CHECKOUT,
            stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.processes = [psutil.Process(self.outer.pid)]

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def rank(self, rank: int) -> psutil.Process:
        return rank_process(self.outer.pid, rank)

    def await_steps(self) -> None:
        """Until there is a new checkpoint and training has gone on."""
        until(lambda: newest(self.run_dir) > self._began_with, lambda: self.printed)
        self.processes += self.processes[0].children(recursive=True)
        assert len(self.processes) >= 6  # runner, launcher, two ranks, a loader worker of each

    def end(self, seconds: float) -> int:
        """The exit code of the outer process, when all are gone: processes, shared memory."""
        returncode = self.outer.wait(timeout=60)
        _, alive = psutil.wait_procs(self.processes[1:], timeout=seconds)
        assert not alive, f"{alive}\n{self.printed}"
        assert not shared_memory(self._environment["TMPDIR"])
        assert "Traceback" not in re.sub(r"(?s)Traceback.*?runner\.py.*?KeyboardInterrupt", "", self.printed)
        return returncode


@contextmanager
def running(run_file: Path, run_dir: Path, *overrides: str) -> Iterator[Running]:
    log = run_dir.parent / f"{run_dir.name}-{time.monotonic_ns()}.log"
    run = Running(run_file, run_dir, log, *overrides)
    try:
        yield run
    finally:
        left = run.processes[0].children(recursive=True) if run.outer.poll() is None else []
        for process in (*run.processes, *left):
            if process.is_running():
                process.kill()
        run.outer.wait()


def newest(run_dir: Path) -> int:
    """Steps in the newest checkpoint, or 0."""
    return int(whole_checkpoints(run_dir)[-1].name.removeprefix("step-")) if whole_checkpoints(run_dir) else 0


def until(happened: Callable[[], bool], printed: Callable[[], str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, printed()
        time.sleep(0.01)


def shared_memory(temporary_folder: str) -> list[str]:
    """Names in shared memory of the runs with this temporary folder: the files of their ranks say which it is."""
    owners = [path for path in SHARED_MEMORY.glob("*_owner_*") if path.read_text() == temporary_folder]
    return [path.name for owner in owners for path in SHARED_MEMORY.glob(f"{owner.name.partition('_')[0]}_*")]


def sigterm_to_the_outer_process(run: Running) -> None:
    run.outer.terminate()
    assert run.end(seconds=20) == -signal.SIGTERM
    assert "because of the end of the launcher; everything is saved" in run.printed


def sigusr1_to_one_rank(run: Running) -> None:
    run.rank(1).send_signal(signal.SIGUSR1)
    assert run.end(seconds=20) == 75
    assert "because of SIGUSR1; everything is saved" in run.printed


def ctrl_c(run: Running) -> None:
    os.killpg(run.outer.pid, signal.SIGINT)
    run.end(seconds=20)
    assert run.printed.count("saving; press again to quit at once") == 1
    assert "everything is saved" in run.printed


def sigkill_of_the_launcher(run: Running) -> None:
    run.processes[1].kill()
    run.end(seconds=20)
    assert "because of the end of the launcher; everything is saved" in run.printed


def test_a_run_that_is_stopped_again_and_again_goes_on_as_if_nothing_had_happened(run_file):
    undisturbed, run_dir = run_file.parent / "undisturbed", run_file.parent / "stopped"
    fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={undisturbed}", scratch=run_file.parent)
    truth = curves(undisturbed)
    assert set(truth["loss/total"]) == set(range(1, STEPS + 1))

    for stop in (sigterm_to_the_outer_process, sigusr1_to_one_rank, ctrl_c, sigkill_of_the_launcher):
        with running(run_file, run_dir) as run:
            run.await_steps()
            stop(run)
        steps = curves(run_dir)["loss/total"]
        assert newest(run_dir) == max(steps) < STEPS, f"{stop.__name__}: not everything is saved"
    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", scratch=run_file.parent)

    assert finished.returncode == 0, finished.stdout
    assert curves(run_dir) == truth  # bitwise, at every step
    weights, true_weights = read_weights(run_dir), read_weights(undisturbed)
    assert all(torch.equal(weights[name], true_weights[name]) for name in true_weights)


def test_a_rank_that_freezes_for_good_is_named_and_ended_by_the_other_and_nothing_is_left_of_either(run_file):
    run_dir = run_file.parent / "frozen"
    with running(run_file, run_dir, "watch.silence_seconds=5", "train.steps=2000") as run:
        run.await_steps()
        run.rank(1).suspend()
        time.sleep(2)
        run.rank(1).resume()  # soon enough: nobody minds
        thawed = newest(run_dir)
        until(lambda: newest(run_dir) > thawed + 4, lambda: run.printed)
        run.rank(1).suspend()
        frozen = time.monotonic()
        returncode = run.end(seconds=15)
        assert time.monotonic() - frozen < 25
    assert returncode in (69, 256 - signal.SIGKILL)  # of the other rank or of the one it had to kill


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_other_within_seconds(rank, run_file):
    run_dir = run_file.parent / f"killed-{rank}"
    ranks = start_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", "train.steps=2000", scratch=run_file.parent)
    try:
        until(lambda: newest(run_dir) > 0, lambda: ranks.printed)
        workers = psutil.Process(ranks.pids[rank]).children(recursive=True)
        assert workers
    finally:
        os.kill(ranks.pids[rank], signal.SIGKILL)
        killed = time.monotonic()
        finished = ranks.wait(60)
    assert time.monotonic() - killed < 20
    assert not psutil.wait_procs(workers, timeout=5)[1]
    said = [line for line in finished.stdout.splitlines() if line.startswith("rank ")]
    assert len(said) == 1, finished.stdout
    gone = rf"rank {rank} \(host \S+, step \d+, .*\) gave no sign of life for \d s"
    assert re.fullmatch(f"rank {1 - rank}: {gone}", said[0]), said
    assert "Traceback" not in finished.stdout
    assert not shared_memory(environment(run_file.parent)["TMPDIR"])


def test_what_one_rank_alone_stops_for_is_repeated_by_the_other_and_ends_both(run_file, tiny_shards, tmp_path):
    def no_frames(number: int, record: dict) -> None:
        if number == 5:
            record["frames"] = bytes(len(record["frames"]))

    shards = small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=24, change=no_frames)
    finished = fork_ranks(
        2, PRETRAIN, str(run_file), f"run_dir={tmp_path}/run", f"data.train={shards}", "data.on_bad_clip=fail",
        scratch=run_file.parent,
    )  # fmt: skip
    assert finished.returncode == 2, finished.stdout
    speaker, sentence = re.findall(r"pretrain: error: rank (\d): (.*on_bad_clip is fail\))", finished.stdout)[0]
    other = 1 - int(speaker)
    repeated = rf"\nrank {other}: rank {speaker} \(host \S+, step \d+, .*\) stopped: {re.escape(sentence)}\n"
    assert re.search(repeated, finished.stdout), finished.stdout
    assert "Traceback" not in finished.stdout and not shared_memory(environment(run_file.parent)["TMPDIR"])

"""Real runs are stopped in every way, and go on as if nothing had happened; ranks that die or freeze are named.

Ranks are under the real launcher where it has a part in the end, else forked: their launcher is this process.
"""

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
from tests.ranks import CHECKOUT, PRETRAIN, Forked, command, environment, fork_ranks, start_ranks
from tests.training.test_survival import RUN, curves

pytestmark = pytest.mark.slow

STEPS = 60
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_shards) -> Path:
    path = tmp_path_factory.mktemp("stopping") / "run.yaml"
    path.write_text(RUN.format(shards=tiny_shards, steps=STEPS))
    return path


def newest(run_dir: Path) -> int:
    """Steps in the newest checkpoint, or 0."""
    return int(whole_checkpoints(run_dir)[-1].name.removeprefix("step-")) if whole_checkpoints(run_dir) else 0


def until(happened: Callable[[], bool], printed: Callable[[], str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, printed()
        time.sleep(0.01)


def assert_nothing_left(processes: list[psutil.Process], run_file: Path, printed: str) -> None:
    """Of processes or shared memory."""
    assert not psutil.wait_procs(processes, timeout=20)[1], printed
    assert not owners(run_file)
    assert "Traceback" not in printed


def owners(run_file: Path) -> list[Path]:
    """Files of this run's ranks in shared memory; they hold the name of the temporary folder."""
    folder = environment(run_file.parent)["TMPDIR"]
    return [path for path in SHARED_MEMORY.glob("*_owner_*") if path.read_text() == folder]


@contextmanager
def forked(run_file: Path, run_dir: Path, *overrides: str) -> Iterator[tuple[Forked, list[psutil.Process]]]:
    """Two ranks that have got on since they were started, and all processes of theirs."""
    began_with = newest(run_dir)
    ranks = start_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", *overrides, scratch=run_file.parent)
    try:
        until(lambda: newest(run_dir) > began_with, lambda: ranks.printed)
        processes = [psutil.Process(pid) for pid in ranks.pids]
        workers = [worker for process in processes for worker in process.children(recursive=True)]
        assert len(workers) >= 2
        yield ranks, processes + workers
    except BaseException:
        ranks.end()
        raise


def sigusr1_to_one_rank(run_file: Path, run_dir: Path) -> str:
    with forked(run_file, run_dir) as (ranks, processes):
        os.kill(ranks.pids[1], signal.SIGUSR1)
        finished = ranks.wait(60)
        assert finished.returncode == 75
        assert_nothing_left(processes, run_file, finished.stdout)
    return finished.stdout


def ctrl_c(run_file: Path, run_dir: Path) -> str:
    with forked(run_file, run_dir) as (ranks, processes):
        for pid in ranks.pids:
            os.killpg(pid, signal.SIGINT)  # loader workers hear it too
        finished = ranks.wait(60)
        assert finished.returncode == 75
        assert finished.stdout.count("saving; press again to quit at once") == 1
        assert_nothing_left(processes, run_file, finished.stdout)
    return finished.stdout


def sigterm_to_the_outer_process(run_file: Path, run_dir: Path) -> str:
    return end_of_launcher(run_file, run_dir, lambda outer, inner: outer.terminate())


def sigkill_of_the_launcher(run_file: Path, run_dir: Path) -> str:
    return end_of_launcher(run_file, run_dir, lambda outer, inner: inner.kill())


def end_of_launcher(run_file: Path, run_dir: Path, end: Callable[[psutil.Process, psutil.Process], None]) -> str:
    """What a run under `deepspeed` printed that lost one of its two launchers, and then has gone altogether."""
    began_with, log = newest(run_dir), run_dir.parent / f"{run_dir.name}-{newest(run_dir)}.log"
    with log.open("w") as output:
        outer = psutil.Popen(
            command(2, PRETRAIN, str(run_file), f"run_dir={run_dir}"), env=environment(run_file.parent), cwd=CHECKOUT,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    processes = []
    try:
        until(lambda: newest(run_dir) > began_with, log.read_text)
        processes = outer.children(recursive=True)
        assert len(processes) >= 5  # the inner launcher, two ranks, a loader worker of each
        end(outer, processes[0])
        outer.wait(timeout=60)
        assert_nothing_left(processes, run_file, log.read_text())
    finally:
        for process in (outer, *processes):
            if process.is_running():
                process.kill()
    return log.read_text()


def test_a_run_that_is_stopped_again_and_again_goes_on_as_if_nothing_had_happened(run_file):
    undisturbed, run_dir = run_file.parent / "undisturbed", run_file.parent / "stopped"
    fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={undisturbed}", scratch=run_file.parent)
    truth = curves(undisturbed)
    assert set(truth["loss/total"]) == set(range(1, STEPS + 1))

    for stop, reason in (
        (sigterm_to_the_outer_process, "the end of the launcher"),
        (sigusr1_to_one_rank, "SIGUSR1"),
        (ctrl_c, "SIGINT"),
        (sigkill_of_the_launcher, "the end of the launcher"),
    ):
        printed = stop(run_file, run_dir)
        step = newest(run_dir)
        assert f"stopped after step {step} because of {reason}; everything is saved" in printed
        assert step == max(curves(run_dir)["loss/total"]) < STEPS
    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", scratch=run_file.parent)

    assert finished.returncode == 0, finished.stdout
    assert curves(run_dir) == truth  # bitwise, at every step
    weights, true_weights = read_weights(run_dir), read_weights(undisturbed)
    assert all(torch.equal(weights[name], true_weights[name]) for name in true_weights)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_other_within_seconds(rank, run_file):
    with forked(run_file, run_file.parent / f"killed-{rank}", "train.steps=2000") as (ranks, processes):
        os.kill(ranks.pids[rank], signal.SIGKILL)
        killed = time.monotonic()
        finished = ranks.wait(60)
        assert time.monotonic() - killed < 20
        assert_nothing_left(processes, run_file, finished.stdout)
    assert finished.returncode == 256 - signal.SIGKILL
    assert_named(rank, "[45]", finished.stdout)


def test_a_loader_worker_that_is_killed_is_named_and_the_run_can_be_started_again(run_file):
    with forked(run_file, run_file.parent / "killed-worker", "train.steps=2000") as (ranks, processes):
        workers = [process for process in processes[2:] if "resource_tracker" not in " ".join(process.cmdline())]
        workers[0].kill()
        finished = ranks.wait(120)
        assert_nothing_left(processes, run_file, finished.stdout)
    assert finished.returncode == 69
    assert finished.stdout.count("a loader worker is gone (") >= 1


def test_a_rank_that_freezes_for_good_is_named_and_ended_by_the_other(run_file):
    run_dir = run_file.parent / "frozen"
    with forked(run_file, run_dir, "train.steps=2000", "watch.silence_seconds=5") as (ranks, processes):
        processes[1].suspend()
        time.sleep(2)
        processes[1].resume()  # soon enough: nobody minds
        thawed = newest(run_dir)
        until(lambda: newest(run_dir) > thawed + 4, lambda: ranks.printed)
        processes[1].suspend()
        frozen = time.monotonic()
        finished = ranks.wait(60)
        assert time.monotonic() - frozen < 20
        until(lambda: not owners(run_file), lambda: finished.stdout, seconds=20)  # by the process that killed it
        assert_nothing_left(processes, run_file, finished.stdout)
    assert finished.returncode == 69
    assert_named(1, "[56]", finished.stdout)


def assert_named(rank: int, seconds: str, printed: str) -> None:
    """The other rank of two says in one line that this one is gone, and nothing else."""
    said = [line for line in printed.splitlines() if line.startswith("rank ")]
    assert len(said) == 1, printed
    gone = rf"rank {rank} \(host \S+, step \d+, \w+.*\) gave no sign of life for {seconds} s"
    assert re.fullmatch(f"rank {1 - rank}: {gone}", said[0]), said


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
    repeated = rf"\nrank {1 - int(speaker)}: rank {speaker} \(host \S+, step \d+, .*\) stopped: {re.escape(sentence)}\n"
    assert re.search(repeated, finished.stdout), finished.stdout
    assert_nothing_left([], run_file, finished.stdout)

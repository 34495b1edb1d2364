"""One process writes into a run folder: a second one is refused by name, a dead one delays nobody."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cavmae_ds.checkpoint import checkpoint_root, holder
from cavmae_ds.checkpoint.holder import RunInUse
from cavmae_ds.checkpoint.run_lock import RunLock
from cavmae_ds.errors import CheckpointError
from cavmae_ds.monitor.log import LOG
from tests.ranks import PRETRAIN, start_runs

RENEW_S = 0.2
FORK = multiprocessing.get_context("fork")


def lock(run_dir: Path, lost: Callable[[RunInUse], object] = lambda error: None) -> RunLock:
    return RunLock(run_dir, lost, RENEW_S)


def hold(run_dir: Path, machine: str, answers: Connection) -> None:
    if machine:
        holder._machine = lambda: machine
    try:
        lock(run_dir, lambda error: answers.send(str(error)))
    except RunInUse as error:
        answers.send(str(error))
        return
    worker = FORK.Process(target=time.sleep, args=(60,))
    worker.start()
    answers.send(worker.pid)
    time.sleep(60)


@contextmanager
def process_with_lock(run_dir: Path, machine: str = "") -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that has the lock and a worker that it forked, and what it says later. machine: as of another host."""
    answers, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(run_dir, machine, theirs))
    process.start()
    theirs.close()
    worker = answers.recv()
    try:
        yield process, answers
    finally:
        process.kill()
        process.join()
        os.kill(worker, signal.SIGKILL)


def test_a_second_process_is_refused_and_told_host_and_pid_of_the_first(tmp_path):
    with process_with_lock(tmp_path) as (process, _), pytest.raises(RunInUse) as refusal:
        lock(tmp_path)
    expected = f"run_dir {str(tmp_path)!r} is in use by process {process.pid} on host {socket.gethostname()}; wait"
    assert expected in str(refusal.value)


def test_a_killed_process_delays_nobody_though_its_worker_lives(tmp_path):
    with process_with_lock(tmp_path) as (process, _):
        process.kill()
        began = time.monotonic()
        lock(tmp_path).close()  # and close() frees it
        assert time.monotonic() - began < 2
        with process_with_lock(tmp_path):
            pass


def test_a_holder_on_another_host_that_renews_is_named(tmp_path):
    with process_with_lock(tmp_path, machine="another") as (process, _), pytest.raises(RunInUse) as refusal:
        lock(tmp_path)
    assert f"process {process.pid} on host" in str(refusal.value)


def test_a_lost_host_is_replaced_while_the_file_system_still_keeps_its_lock_and_gives_up_when_it_is_back(tmp_path):
    """As NFS does until the host's lease has ended."""
    with process_with_lock(tmp_path, machine="another") as (process, sentences):
        os.kill(process.pid, signal.SIGSTOP)
        mine = lock(tmp_path)
        os.kill(process.pid, signal.SIGCONT)
        assert f"is in use by process {os.getpid()} on host" in sentences.recv()
    time.sleep(2 * RENEW_S)
    answers, theirs = FORK.Pipe()
    FORK.Process(target=hold, args=(tmp_path, "a third", theirs)).start()
    assert f"process {os.getpid()}" in answers.recv()
    mine.close()


def test_a_folder_that_is_deleted_and_made_again_stays_locked(tmp_path):
    with process_with_lock(tmp_path / "run") as (process, _):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "run.lock").is_file() and time.monotonic() < deadline:
            time.sleep(RENEW_S / 2)
        with pytest.raises(RunInUse, match=f"process {process.pid} on host"):
            lock(tmp_path / "run")


def test_the_target_of_a_link_is_left_alone(tmp_path):
    (tmp_path / "target").write_text("content")
    (tmp_path / "run.lock").symlink_to("target")
    with pytest.raises(CheckpointError, match="run_dir: cannot write"):
        lock(tmp_path)
    assert (tmp_path / "target").read_text() == "content"


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for run_dir in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(CheckpointError, match="run_dir: cannot write"):
            lock(run_dir)


RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1}}
train: {{global_batch: 4, micro_batch: 2, steps: {steps}, precision: fp32}}
checkpoint: {{every_steps: 5}}
monitor: {{log_every: 1, pictures_every: 0}}
"""


def test_of_two_runs_started_at_once_on_one_folder_one_is_refused_by_all_its_ranks(tiny_shards, tmp_path):
    run_file, run_dir = tmp_path / "run.yaml", tmp_path / "run"
    run_file.write_text(RUN.format(shards=tiny_shards, steps=40))
    runs = start_runs([2, 2], PRETRAIN, str(run_file), f"run_dir={run_dir}", scratch=tmp_path)

    printed = runs.wait().stdout

    assert sorted(runs.returncodes) == [0, 2] and "Traceback" not in printed, printed
    first_ranks = runs.pids[::2]
    holder_pid = first_ranks[runs.returncodes.index(0)]
    (line,) = [line for line in printed.splitlines() if "is in use by" in line]
    assert f"is in use by process {holder_pid} on host {socket.gethostname()};" in line
    points = [json.loads(line) for line in (run_dir / LOG).read_text().splitlines()]
    assert [point["step"] for point in points if "loss/total" in point] == list(range(1, 41))
    assert {folder.name for folder in checkpoint_root(run_dir).iterdir()} == {"step-00000035", "step-00000040"}

"""A single process is asked to stop, or loses whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.ranks import CHECKOUT

LISTENER = """\
import threading, time
from cavmae_ds.fault_tolerance.signals import StopRequests
stop = StopRequests(grace_s={grace_s}, rank=0)
print("ready", flush=True)
for _ in range(100):
    time.sleep(0.05)
    if stop.reason:
        print("asked by", stop.reason, flush=True)
        threading.Event().wait() if {blocked} else None
        break
"""

LAUNCHER = """\
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
"""

ORPHAN = """\
import os, threading
from cavmae_ds.fault_tolerance.process_tree import launchers, when_orphaned
orphaned = threading.Event()
when_orphaned(launchers(), orphaned.set)
print("ready", os.getpid(), flush=True)
os._exit(75 if orphaned.wait(20) else 1)
"""

WORKER = """\
import multiprocessing, os, signal, time
from cavmae_ds.fault_tolerance.process_tree import stay_with_rank
def work():
    stay_with_rank()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(os.getpid(), number)
    print("ready", os.getpid(), flush=True)
    time.sleep(60)
worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
worker.start()
{then}
"""


def start(*command: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def first_line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()
    assert line.startswith("ready"), line + process.stdout.read()
    return line


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_ends_nothing_by_itself(number):
    process = start("-c", LISTENER.format(grace_s=20, blocked=False))
    first_line(process)
    process.send_signal(number)
    assert f"asked by {number:d}" in process.communicate(timeout=20)[0]
    assert process.returncode == 0


def test_ctrl_c_tells_what_the_next_one_will_do_and_the_next_one_quits_at_once():
    process = start("-c", LISTENER.format(grace_s=20, blocked=True))
    first_line(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "\n"
    assert process.stdout.readline() == "saving; press again to quit at once\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_a_save_that_takes_longer_than_the_grace_after_sigterm_is_given_up_in_one_sentence():
    process = start("-c", LISTENER.format(grace_s=0.5, blocked=True))
    first_line(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=10)[0].splitlines()
    assert process.returncode == 75
    assert [line for line in said if "rank" in line] == [
        "rank 0: not done 0.5 s after SIGTERM (watch.grace_seconds); what is not saved yet is given up, the newest "
        "whole checkpoint counts"
    ]


def test_a_run_started_with_nohup_ignores_the_end_of_its_terminal():
    def ignore_hangup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start("-c", LISTENER.format(grace_s=20, blocked=False), preexec_fn=ignore_hangup)
    first_line(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert f"asked by {signal.SIGUSR1:d}" in process.communicate(timeout=20)[0]


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_a_rank_notices_the_end_of_its_launcher(name, tmp_path):
    (tmp_path / name).write_text(LAUNCHER)
    launcher = start(str(tmp_path / name), ORPHAN)
    rank = int(first_line(launcher).split()[1])
    launcher.kill()
    assert gone(rank, 5)


def test_a_rank_goes_on_when_the_shell_that_started_it_ends(tmp_path):
    (tmp_path / "train.sh").write_text(LAUNCHER)
    shell = start(str(tmp_path / "train.sh"), ORPHAN)
    rank = int(first_line(shell).split()[1])
    try:
        shell.kill()
        assert not gone(rank, 2)
    finally:
        os.kill(rank, signal.SIGKILL)


def test_a_reader_of_the_output_that_is_gone_does_not_end_a_run():
    printing = (
        "import sys, time\nfrom cavmae_ds.fault_tolerance.process_tree import when_orphaned\n"
        "when_orphaned([], lambda: None)\n"
        "print('ready', flush=True)\ntime.sleep(1)\nprint('more', flush=True)\nsys.exit(7)"
    )
    process = start("-c", printing)
    first_line(process)
    process.stdout.close()
    assert process.wait(timeout=10) == 7


def test_a_loader_worker_ends_with_its_rank_and_not_by_signals_to_all():
    rank = start("-c", WORKER.format(then="time.sleep(60)"))
    worker = int(first_line(rank).split()[1])
    assert not gone(worker, 0.5)
    rank.kill()
    assert gone(worker, 5)


def test_a_loader_worker_ends_when_its_rank_says_so():
    rank = start("-c", WORKER.format(then="time.sleep(1); worker.terminate(); worker.join(10); print(worker.exitcode)"))
    first_line(rank)
    assert rank.communicate(timeout=20)[0] == "0\n"


def test_signals_for_all_processes_of_a_rank_leave_the_keeper_of_its_shared_memory():
    rank = """\
import os, psutil, signal, time
from cavmae_ds.fault_tolerance.signals import StopRequests
stop = StopRequests(grace_s=60, rank=0)
[keeper] = psutil.Process().children()
for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    keeper.send_signal(number)
time.sleep(0.5)
print("kept" if keeper.status() != psutil.STATUS_ZOMBIE else "lost", flush=True)
os._exit(0)
"""
    assert start("-c", rank).communicate(timeout=60)[0] == "kept\n"

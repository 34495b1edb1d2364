"""The program that runs the ranks of one host: what it passes on, what it leaves behind, what it says in the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cavmae_ds.launcher import host

# Stands where DeepSpeed's launcher stands: starts two ranks, ends when they have, with the first code that is not 0.
LAUNCHER = """\
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-S", *sys.argv[1:], str(rank)]) for rank in range(2)]
sys.exit(next((code for code in [rank.wait() for rank in ranks] if code), 0))
"""
# Notes what it is told in a file and ends with 75 when that is a request to stop; `deaf` does not.
RANK = """\
import signal, subprocess, sys, time
from pathlib import Path
folder, deaf, rank = Path(sys.argv[1]), sys.argv[2] == "deaf", sys.argv[3]
def told(number, _):
    with (folder / f"told-{rank}").open("a") as file:
        file.write(f"{number} ")
    if not deaf:
        sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, told)
subprocess.Popen(["sleep", "1000"])  # a loader worker that nobody ends
(folder / f"ready-{rank}").touch()
while True:
    print("step", flush=True)
    time.sleep(0.02)
"""


@contextmanager
def host_program(
    folder: Path, deaf: bool = False, silence_s: float = 60, grace_s: float = 60, relay: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """The program with two ranks that are ready, as `cavmae launch` starts it; killed if the test leaves it running."""
    (folder / "rank.py").write_text(RANK)
    ranks = [str(folder / "rank.py"), str(folder), "deaf" if deaf else "attentive"]
    order = {
        "command": [sys.executable, "-S", "-c", LAUNCHER, *ranks],
        "cwd": str(folder), "environment": {}, "relay": relay, "silence_s": silence_s, "grace_s": grace_s,
    }  # fmt: skip
    program = subprocess.Popen(
        [sys.executable, host.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        tell(program, json.dumps(order))
        deadline = time.monotonic() + 30
        while len(list(folder.glob("ready-*"))) < 2:
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.02)
        yield program
    finally:
        if program.poll() is None:
            for process in [*psutil.Process(program.pid).children(recursive=True), program]:
                process.kill()
        program.wait()


def tell(program: subprocess.Popen[bytes], line: str) -> None:
    assert program.stdin
    program.stdin.write(f"{line}\n".encode())
    program.stdin.flush()


def told(folder: Path) -> list[str]:
    """What each rank was told, in order."""
    return [path.read_text().strip() for path in sorted(folder.glob("told-*"))]


def left_over(folder: Path) -> list[str]:
    """Processes that were started in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process.name()] if process.cwd() == str(folder) else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("number", [10, 2, 15])
def test_a_signal_reaches_every_rank_itself_and_their_exit_code_comes_back(number, tmp_path):
    with host_program(tmp_path) as program:
        tell(program, "0")
        tell(program, str(number))
        assert program.wait(30) == 75
    assert told(tmp_path) == [str(number)] * 2
    assert not left_over(tmp_path)  # the ranks' children neither


@pytest.mark.parametrize("relay", [True, False])
def test_ranks_are_asked_to_stop_when_nobody_gives_orders_any_more(relay, tmp_path):
    with host_program(tmp_path, relay=relay) as program:
        program.stdin.close()
        if relay:
            program.stdout.close()  # the connection is gone, and what the ranks go on to print has nowhere to go
        assert program.wait(30) == 75
    assert told(tmp_path) == ["15", "15"]
    assert not left_over(tmp_path)


def test_ranks_are_asked_to_stop_when_no_sign_of_life_comes_any_more(tmp_path):
    with host_program(tmp_path, silence_s=1) as program:
        for _ in range(10):
            tell(program, "0")
            time.sleep(0.2)
        assert program.poll() is None and not told(tmp_path)
        assert program.wait(30) == 75
    assert told(tmp_path) == ["15", "15"]


def test_ranks_that_do_not_stop_in_time_are_killed(tmp_path):
    with host_program(tmp_path, deaf=True, grace_s=1) as program:
        tell(program, "10")
        time.sleep(2)
        assert program.poll() is None  # no time limit on a request from ahead of the end
        tell(program, "15")
        assert program.wait(30) == 256 - 9
    assert told(tmp_path) == ["10 15", "10 15"]
    assert not left_over(tmp_path)


def test_a_host_that_shuts_down_stops_its_ranks_in_good_order(tmp_path):
    with host_program(tmp_path) as program:
        program.terminate()
        assert program.wait(30) == 75
    assert told(tmp_path) == ["15", "15"]

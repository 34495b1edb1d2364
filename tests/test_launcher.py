"""Forked ranks are told, end and fail as the launcher's are: tests that use them would else prove nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.ranks import fork_cavmae, fork_ranks, launch, start_ranks

TELL = """\
import json, os, random, sys, tempfile, torch
import numpy as np
from pathlib import Path
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(verbose=False)
rank = torch.distributed.get_rank()
numbers = torch.full((3,), 1 / (3 + rank))
torch.distributed.all_reduce(numbers)
names = "LOCAL_RANK WORLD_SIZE LOCAL_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR TMPDIR OMP_NUM_THREADS"
told = {name: os.environ[name] for name in names.split()} | {
    "arguments": sys.argv[:-1], "folder": os.getcwd(), "temporary": tempfile.gettempdir(), "path": sys.path[0],
    "main": __name__, "threads": torch.get_num_threads(),
    "random": [torch.rand(()).item(), np.random.rand(), random.random()], "sum": numbers.tolist(),
}
Path(sys.argv[-1], str(rank)).write_text(json.dumps(told))
"""


def test_forked_ranks_are_told_and_compute_what_the_launchers_are(tmp_path):
    script = tmp_path / "tell.py"
    script.write_text(TELL)
    found = []
    for start in (launch, fork_ranks):
        (tmp_path / start.__name__).mkdir()
        finished = start(2, script, "an argument", str(tmp_path / start.__name__), scratch=tmp_path)
        assert finished.returncode == 0, finished.stdout
        found.append([json.loads((tmp_path / start.__name__ / str(rank)).read_text()) for rank in range(2)])
    drawn = [number for ranks in found for told in ranks for number in told.pop("random")]
    assert len(set(drawn)) == 2 * 2 * 3  # nobody is given the seed of another
    assert found[0] == found[1]
    assert found[0][0]["sum"] == found[0][1]["sum"] and found[0][0]["arguments"] != found[0][1]["arguments"]


def script(folder: Path, *lines: str) -> Path:
    path = folder / "script.py"
    path.write_text("\n".join(("import os, sys, time", "rank = int(os.environ['RANK'])", *lines)))
    return path


def test_a_forked_rank_that_fails_ends_the_others_with_its_exit_code_and_traceback(tmp_path):
    fails = script(tmp_path, "if rank: raise SystemExit(7)", "print('waiting'); time.sleep(100)")
    assert fork_ranks(2, fails, scratch=tmp_path).returncode == 7
    raises = script(tmp_path, "if rank: raise ValueError('no such thing')", "time.sleep(100)")
    finished = fork_ranks(2, raises, scratch=tmp_path)
    assert finished.returncode == 1 and "ValueError: no such thing" in finished.stdout


def test_a_forked_command_says_what_it_says_to_a_user():
    told = fork_cavmae("--help")
    assert told.returncode == 0 and "prepare" in told.stdout and told.stderr == ""
    refused = fork_cavmae("prepare", "no/such/folder", "--out", "nowhere")
    assert refused.returncode == 2 and "no/such/folder" in refused.stderr and refused.stdout == ""


def test_forked_ranks_can_be_watched_and_killed(tmp_path):
    sleeps = script(tmp_path, "print(f'{rank} sleeps'); time.sleep(100)")
    ranks = start_ranks(2, sleeps, scratch=tmp_path)
    while ranks.printed.count("sleeps") < 2:
        time.sleep(0.01)
    os.kill(ranks.pids[1], 9)
    assert ranks.wait().returncode == 256 - 9
    assert not any(psutil.pid_exists(pid) for pid in ranks.pids)


def test_forked_ranks_that_take_too_long_are_ended_and_their_workers_too(tmp_path):
    forks = script(tmp_path, "os.fork()", "print(os.getpid(), flush=True)", "time.sleep(100)")
    ranks = start_ranks(1, forks, scratch=tmp_path)
    while ranks.printed.count("\n") < 2:
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired) as ended:
        ranks.wait(seconds=0.1)
    deadline = time.monotonic() + 30  # a worker dies some time after the signal, and is nobody's child then
    while any(map(runs, map(int, ended.value.output.split()))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_forked_ranks_that_nobody_waited_for_are_ended_by_the_next(tmp_path):
    left = start_ranks(2, script(tmp_path, "time.sleep(100)"), scratch=tmp_path)
    assert fork_ranks(1, script(tmp_path), scratch=tmp_path).returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in left.pids)


def test_a_variable_that_forked_ranks_would_read_too_late_is_refused(tmp_path, monkeypatch):
    fork_ranks(1, script(tmp_path), scratch=tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(AssertionError, match="TRITON_CACHE_DIR"):
        fork_ranks(1, script(tmp_path), scratch=tmp_path)

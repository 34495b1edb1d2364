"""What killed runs leave in shared memory is removed, and nothing of a living run is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cavmae_ds.fault_tolerance.shared_memory_leftovers import FOLDER, remove_leftovers
from tests.ranks import environment

WORKER = Path(__file__).with_name("shared_memory_worker.py")


def start(shards: Path, scratch: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, WORKER, shards], env=environment(scratch), text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def names(number: str, scratch: Path) -> set[str]:
    temporary = Path(environment(scratch)["TMPDIR"])
    return {path.name for folder in (FOLDER, temporary) for path in folder.glob(f"{number}_*")}


def test_leftovers_of_a_killed_run_go_and_a_living_run_keeps_its_names(tiny_shards, tmp_path):
    doomed, living = (start(tiny_shards, tmp_path) for _ in range(2))
    try:
        dead, alive = (process.stdout.readline().strip() for process in (doomed, living))
        assert dead and alive and dead != alive
        held = names(alive, tmp_path)
        os.killpg(doomed.pid, signal.SIGKILL)  # and with it Python's own tracker of shared memory
        doomed.wait()
        assert {f"{dead}_shard_states", f"{dead}_owner_0", f"{dead}_cache_filelock"} <= names(dead, tmp_path)

        remove_leftovers()  # as every run does when it begins

        assert names(dead, tmp_path) == set()
        assert names(alive, tmp_path) == held
        said, _ = living.communicate("\n", timeout=60)
        assert said.strip() and living.returncode == 0
        assert names(alive, tmp_path) == set()  # a run that ends takes everything with it
    finally:
        for process in (doomed, living):
            process.kill()


def test_names_of_others_are_left_alone(tmp_path):
    strangers = [FOLDER / f"{os.getpid()}_owner_0", FOLDER / f"cavmae_{os.getpid()}_locals"]
    try:
        for path in strangers:
            path.touch()
        remove_leftovers()
        assert all(path.exists() for path in strangers)
    finally:
        for path in strangers:
            path.unlink()


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b"/tmp/\xff\xfe"),
        lambda path: path.write_bytes(b"/tmp/\0"),
        lambda path: (path.write_text("/tmp"), path.with_name(path.name.replace("owner_0", "locals")).mkdir()),
    ],
    ids=["folder", "FIFO", "link", "no UTF-8", "NUL", "folder among the names"],
)
def test_whatever_lies_in_shared_memory_under_a_name_like_ours_stops_nobody(make):
    number = f"{10**15 + os.getpid()}"
    try:
        make(FOLDER / f"{number}_owner_0")
        remove_leftovers()
    finally:
        for path in FOLDER.glob(f"{number}_*"):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

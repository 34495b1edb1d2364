"""Ranks save in the background and start again: whatever happens, a checkpoint is whole or it is none."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cavmae_ds.checkpoint import checkpoint_root, whole_checkpoints
from cavmae_ds.checkpoint.folder import PARTIAL, read_manifest, verify
from cavmae_ds.checkpoint.manifest import MANIFEST
from tests.checkpoint.made import flip_a_byte
from tests.ranks import fork_ranks, start_ranks

WORKER = Path(__file__).with_name("saving_worker.py")
RANK_0, RANK_1 = ("rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors")


def two_ranks(run_dir: Path, *actions: str, **setting: object) -> str:
    """What two ranks print that do this one after the other."""
    given = json.dumps({"run_dir": str(run_dir), **setting})
    finished = fork_ranks(2, WORKER, given, *actions, scratch=run_dir.parent, seconds=120)
    assert finished.returncode == 0 and "Traceback" not in finished.stdout, finished.stdout
    return finished.stdout


def both(text: str) -> set[str]:
    return {f"rank 0: {text}", f"rank 1: {text}"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with checkpoints 10, 20, 30, 40."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    said = two_ranks(run_dir, "restore", "save=10", "save=20", "begin=30", "begin=40", "wait")
    assert set(said.splitlines()) == both("nothing to restore") | {
        line for step in (10, 20, 30, 40) for line in both(f"saved {step}")
    }
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_saved_checkpoints_are_whole_and_older_ones_go_when_they_may(run_dir):
    for folder in whole_checkpoints(run_dir):
        verify(folder, read_manifest(folder))
    said = two_ranks(run_dir, "restore", "save=50", keep_last=2)
    assert both("restored 40") | both("saved 50") == set(said.splitlines())
    assert sorted(folder.name for folder in checkpoint_root(run_dir).iterdir()) == ["step-00000040", "step-00000050"]


def test_damaged_checkpoints_are_named_and_set_aside_and_the_one_before_is_taken(run_dir):
    root = checkpoint_root(run_dir)
    flip_a_byte(root / "step-00000040" / RANK_1)
    (root / "step-00000030" / RANK_0).unlink()
    manifest = root / "step-00000020" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:99])
    (root / f"step-00000050{PARTIAL}").mkdir()

    said = two_ranks(run_dir, "restore", "save=40", "restore")

    for step, fault in ((40, f"{RANK_1} is not what was written"), (30, f"{RANK_0} is missing"), (20, "no JSON")):
        (line,) = [line for line in said.splitlines() if f"step-{step:08d}' is damaged" in line]
        assert fault in line and f"step-{step:08d}.damaged" in line
    for text in ("restored 10", "saved 40", "restored 40"):
        assert both(text) <= set(said.splitlines())
    assert sorted(folder.name for folder in root.iterdir()) == [
        "step-00000010", "step-00000020.damaged", "step-00000030.damaged", "step-00000040", "step-00000040.damaged",
    ]  # fmt: skip


def test_if_all_are_damaged_nothing_is_begun_anew_neither_at_once_nor_later(run_dir):
    for file in checkpoint_root(run_dir).glob(f"*/{RANK_1}"):
        flip_a_byte(file)
    for said in (two_ranks(run_dir, "restore"), two_ranks(run_dir, "restore", "save=10")):
        refusals = [line for line in said.splitlines() if "refused: no checkpoint is whole" in line]
        assert len(refusals) == 2 and "step-00000040.damaged" in refusals[0] and "saved" not in said


def test_a_rank_that_says_nothing_costs_one_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    said = two_ranks(run_dir, "save=10", limit_s=1.0, silent_rank=1)
    assert "the checkpoint of step 10 could not be saved: nothing was heard of" in said
    assert list(checkpoint_root(run_dir).iterdir()) == []


def test_ranks_killed_at_any_instant_leave_whole_checkpoints_alone(tmp_path):
    """Some 4 MB a rank: most of the time is spent writing and hashing."""
    run_dir, random_numbers = tmp_path / "run", random.Random(0)
    given = json.dumps({"run_dir": str(run_dir), "elements": 1_000_000, "keep_last": 2})
    last = 0
    for attempt in range(3):
        steps = (f"save={step}" for step in range(last + 1, last + 200))
        ranks = start_ranks(2, WORKER, given, "restore", *steps, scratch=tmp_path)
        try:
            while not any(int(folder.name[5:]) > last for folder in whole_checkpoints(run_dir)):
                time.sleep(0.002)
            time.sleep(random_numbers.uniform(0, 0.2))
        finally:
            for pid in random_numbers.sample(ranks.pids, 2):
                os.killpg(pid, signal.SIGKILL)
        said = ranks.wait().stdout
        assert f"rank 0: restored {last}" in said or attempt == 0
        whole = whole_checkpoints(run_dir)
        for folder in whole:
            verify(folder, read_manifest(folder))
        last = int(whole[-1].name[5:])
        assert len(list(checkpoint_root(run_dir).glob(f"*{PARTIAL}"))) <= 2

    said = two_ranks(run_dir, "restore", elements=1_000_000)

    assert both(f"restored {last}") == set(said.splitlines())
    assert not list(checkpoint_root(run_dir).glob(f"*{PARTIAL}"))


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """Mounts a file system of its own: call it with tmpfs options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


def test_a_disk_without_room_is_noticed_before_anything_is_written(small_disk):
    run_dir = small_disk("size=6m") / "run"
    said = two_ranks(run_dir, "save=10", "save=20", "save=30", "restore", elements=250_000)
    assert both("saved 10") | both("saved 20") | both("restored 20") <= set(said.splitlines())
    (line,) = [line for line in said.splitlines() if "the checkpoint of step 30 could not be saved" in line]
    assert "2.3 MB free, 3.0 MB are needed" in line
    assert sorted(folder.name for folder in checkpoint_root(run_dir).iterdir()) == ["step-00000010", "step-00000020"]


def test_a_disk_that_fills_up_while_a_file_is_written_costs_one_checkpoint(small_disk):
    """Out of inodes: room for two checkpoints (a folder, two files, a manifest each) and half of a third."""
    run_dir = small_disk("size=64m,nr_inodes=14") / "run"
    said = two_ranks(run_dir, "save=10", "save=20", "save=30", "restore", "save=40", keep_last=2)
    (line,) = [line for line in said.splitlines() if "the checkpoint of step 30 could not be saved" in line]
    assert "No space left on device" in line
    assert both("saved 20") | both("restored 20") <= set(said.splitlines())
    assert sorted(folder.name for folder in checkpoint_root(run_dir).iterdir()) == ["step-00000010", "step-00000020"]

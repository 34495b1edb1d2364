"""Too little of what loader workers need of a host is said at once, by its name and with numbers."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.handover import FOLDER, check_loading, check_open_files
from cavmae_ds.errors import ConfigError
from tests.ranks import PRETRAIN, environment, fork_ranks, fork_script
from tests.training.test_survival import RUN

WORKER = Path(__file__).with_name("handover_worker.py")


def test_too_few_open_files_in_mid_run_are_the_reason_that_the_rank_gives():
    began = time.monotonic()
    finished = fork_script(WORKER, 150)
    assert time.monotonic() - began < 50  # not by the time-out
    assert finished.stdout == (
        "too many open files: ulimit -n allows a process 150, with 1 loader workers up to 536 may be open; raise it, "
        "or set fewer data.workers\n"
    )
    assert "Traceback" not in finished.stderr


def test_a_full_shared_memory_in_mid_run_is_the_reason_that_the_rank_gives_and_no_file_stays(tmp_path):
    """Batches of 0.8 MB; the file system is this test's own."""
    mounted = "mount -t tmpfs -o size=1M tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("only root mounts")
    command = f"{mounted} && {sys.executable} {WORKER} 1000; ls /dev/shm"
    finished = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert re.fullmatch(
        r"/dev/shm is too small: \S+ MiB of 1 MiB are free, 1 ranks x 1 loader workers hold up to 3 batches each "
        r"there, a batch takes 0.763 MiB and all that are prefetched 2.29 MiB; mount -o remount,size=1G /dev/shm "
        r"\(Docker: --shm-size=1g\), or fewer data.workers\n",
        finished.stdout,
    ), (finished.stdout, finished.stderr)
    assert "Traceback" not in finished.stderr


def test_a_host_that_cannot_hold_even_the_shortest_clips_is_refused():
    check_loading(ranks=2, workers=1, clips=2, inputs=InputSpec(log_mel_frames=64, frame_size=64))
    check_loading(ranks=2, workers=0, clips=10**9, inputs=InputSpec(log_mel_frames=64, frame_size=64))
    with pytest.raises(ConfigError, match=r"2 ranks x 1 data.workers x 2 prefetched batches of 1000000000 clips take"):
        check_loading(ranks=2, workers=1, clips=10**9, inputs=InputSpec(log_mel_frames=64, frame_size=64))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        with pytest.raises(ConfigError, match=r"ulimit -n allows a process 64 open .* needs 80; set ulimit -n 544"):
            check_open_files(ranks=2, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_all_ranks_refuse_alike_before_anything_is_shared(tiny_shards, tmp_path):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN.format(shards=tiny_shards, steps=8))
    finished = fork_ranks(
        2, PRETRAIN, str(run_file), f"run_dir={tmp_path}/run", "data.workers=1000000000", scratch=tmp_path
    )
    assert finished.returncode == 2, finished.stdout
    assert finished.stdout.count("pretrain: error: ") == 1 and "data.workers" in finished.stdout
    assert "Traceback" not in finished.stdout
    folder = environment(tmp_path)["TMPDIR"]
    assert not [path for path in FOLDER.glob("*_owner_*") if path.read_text(errors="replace") == folder]

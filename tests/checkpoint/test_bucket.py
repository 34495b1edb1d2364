"""Checkpoints in a bucket of a real server: sent in the background whatever happens to it, and brought back."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from cavmae_ds.checkpoint import checkpoint_root, whole_checkpoints
from cavmae_ds.checkpoint.bucket import Bucket, open_bucket
from cavmae_ds.checkpoint.folder import SET_ASIDE, UNFINISHED, partial
from cavmae_ds.checkpoint.lease import Lease
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.checkpoint.run_lock import LOCK
from tests.checkpoint.test_saving import RANK_0, RANK_1, WORKER, both, two_ranks
from tests.ranks import PRETRAIN, fork_ranks, start_ranks
from tests.s3_server import RestartableServer


@pytest.fixture
def address(s3_bucket) -> str:
    return f"s3://{s3_bucket}/runs/one"


def objects(bucket: Bucket) -> list[str]:
    return [name for name in bucket.names("") if name.startswith("step-")]


def test_what_is_saved_comes_to_the_bucket_and_to_another_machine(address, tmp_path, s3_server):
    said = two_ranks(tmp_path / "here", "restore", "save=10", "sent=60", "save=20", "save=30", "sent=60",
                     address=address, keep_last=1)  # fmt: skip
    assert both("sent") <= set(said.splitlines()) and s3_server.secret_key not in said
    assert objects(open_bucket(address)) == [f"step-00000030/{name}" for name in ("manifest.json", RANK_0, RANK_1)]

    said = two_ranks(tmp_path / "there", "restore", "save=40", address=address)
    assert both("restored 30") | both("saved 40") <= set(said.splitlines())
    assert sorted(folder.name for folder in checkpoint_root(tmp_path / "there").iterdir()) == ["step-00000040"]


def test_damaged_checkpoints_in_the_bucket_are_set_aside_and_the_one_before_is_fetched(address, tmp_path, s3_server):
    saves = (word for step in (10, 20, 30) for word in (f"save={step}", "sent=60"))
    two_ranks(tmp_path / "here", *saves, address=address)
    bucket = open_bucket(address)
    content = bytearray(bucket.get_bytes(f"step-00000020/{RANK_1}"))
    content[-1] ^= 1
    bucket.put_bytes(f"step-00000020/{RANK_1}", bytes(content))
    s3_server.client().delete_object(Bucket=bucket.bucket, Key=f"runs/one/step-00000030/{RANK_0}")

    said = two_ranks(tmp_path / "there", "restore", address=address)

    assert both("restored 10") <= set(said.splitlines())
    assert f"step-00000020' is damaged: {RANK_1} is not what was written" in said
    assert f"step-00000030' is damaged: {RANK_0} is missing" in said
    assert bucket.steps() == [10] and bucket.steps(SET_ASIDE) == [20, 30]


def test_hosts_without_a_common_disk_fetch_what_they_lack_and_no_more(address, tmp_path):
    def files(host: int) -> list[str]:
        root = checkpoint_root(tmp_path / "run" / f"host-{host}")
        return sorted(path.name for path in root.rglob("*.safetensors"))

    two_ranks(tmp_path / "run", "save=10", own_disks=True)
    assert (files(0), files(1)) == ([RANK_0], [RANK_1])
    said = two_ranks(tmp_path / "run", "sent=60", "restore", address=address, own_disks=True)
    assert both("sent") | both("restored 10") <= set(said.splitlines())
    shutil.rmtree(tmp_path / "run" / "host-1")  # another machine takes its place

    said = two_ranks(tmp_path / "run", "restore", address=address, own_disks=True)

    assert both("restored 10") <= set(said.splitlines())
    assert (files(0), files(1)) == ([RANK_0], [RANK_1])
    fetched = partial(checkpoint_root(tmp_path / "run" / "host-1"), 10) / RANK_1
    assert fetched.is_file() and not partial(checkpoint_root(tmp_path / "run" / "host-0"), 10).exists()


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[RestartableServer]:
    """One that a test may kill."""
    (tmp_path / "server").mkdir()
    with RestartableServer(tmp_path / "server") as server:
        for name, value in server.address.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_server_killed_while_a_checkpoint_is_sent_costs_nothing_but_time(server, tmp_path):
    """20 MB a rank. What the end of the ranks leaves unsent, the next start sends."""
    address = f"s3://{server.address.fresh_bucket()}/run"
    down, again, last = (tmp_path / name for name in ("down", "again", "last"))
    given = {"run_dir": str(tmp_path / "run"), "address": address, "elements": 5_000_000, "keep_last": 2}
    actions = [
        "save=10",
        f"seen={tmp_path / 'down'}",
        "save=20",
        f"seen={again}",
        "sent=100",
        f"seen={last}",
        "save=30",
    ]
    ranks = start_ranks(2, WORKER, json.dumps(given), *actions, scratch=tmp_path)
    wait_for(lambda: any(path.stat().st_size > 1 << 20 for path in (tmp_path / "server").glob("*.dat")))
    server.kill()
    down.touch()
    wait_for(lambda: len(whole_checkpoints(tmp_path / "run")) == 2)
    wait_for(lambda: "sending a checkpoint failed" in ranks.printed)
    server.start()
    again.touch()
    wait_for(lambda: both("sent") <= set(ranks.printed.splitlines()))
    bucket = open_bucket(address)
    assert bucket.steps() == [20] and bucket.steps(UNFINISHED) == []
    server.kill()
    last.touch()
    said = ranks.wait().stdout
    assert both("saved 30") <= set(said.splitlines()) and "Traceback" not in said

    server.start()
    said = two_ranks(tmp_path / "run", "restore", "sent=60", address=address, elements=5_000_000)

    assert both("restored 30") | both("sent") <= set(said.splitlines())
    assert open_bucket(address).steps() == [20, 30]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_half_sent_checkpoints_and_superseded_ones_are_removed(address, tmp_path):
    file = tmp_path / RANK_0
    file.write_bytes(b"something")
    bucket = open_bucket(address)
    for step in (10, 20, 30, 40):
        bucket.put(step, file)
    for step in (20, 30, 40):
        bucket.put_bytes(f"step-{step:08d}/manifest.json", b"{}")
    bucket.put(50, file)  # being sent
    bucket.set_aside(20)
    assert (bucket.steps(), bucket.steps(UNFINISHED), bucket.steps(SET_ASIDE)) == ([30, 40], [10, 50], [20])

    assert sorted(bucket.prune(Retention(1), newest=40)) == [10, 30]

    assert (bucket.steps(), bucket.steps(UNFINISHED), bucket.steps(SET_ASIDE)) == ([40], [50], [20])


RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 0}}
train: {{global_batch: 8, micro_batch: 4, steps: 12, precision: fp32}}
checkpoint: {{address: "{address}", every_minutes: 0.005, keep_last: 9}}
monitor: {{log_every: 1, pictures_every: 0}}
"""


def test_a_run_has_its_bucket_alone_saves_by_the_clock_and_another_machine_has_the_end_of_it(
    address, tiny_shards, tmp_path, s3_server
):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN.format(shards=tiny_shards, address=address))
    other = Lease(open_bucket(address), lambda error: None)
    other.confirm()
    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={tmp_path / 'refused'}", scratch=tmp_path)
    assert finished.returncode == 2 and "Traceback" not in finished.stdout, finished.stdout
    assert f"rank 0: checkpoint.address '{address}' is in use by process {os.getpid()} on host" in finished.stdout
    assert open_bucket(address).names("") == [LOCK]
    other.close()

    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={tmp_path / 'here'}", scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert not open_bucket(address).exists(LOCK)
    steps = [int(folder.name[5:]) for folder in whole_checkpoints(tmp_path / "here")]
    assert len(steps) > 1 and steps[-1] == 12  # checkpoint.every_steps is a thousand
    assert all(later - earlier > 1 for earlier, later in pairwise(steps[:-1]))
    assert open_bucket(address).steps()[-1] == 12

    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={tmp_path / 'there'}", scratch=tmp_path)

    assert finished.returncode == 0 and "resumed from step 12" in finished.stdout, finished.stdout
    for path in (path for path in tmp_path.glob("*ere/**/*") if path.is_file()):
        assert s3_server.secret_key.encode() not in path.read_bytes(), path

"""Two hosts: every way to start a run on them trains as one host does, whatever happens to the link between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.evaluation.roc_curves import read_curves
from tests.multinode.hosts import Host, two_hosts, wait_until, why_not
from tests.ranks import PRETRAIN, fork_ranks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

STEPS, SILENCE_S = 20, 8
TO_END_S = 20  # from noticing to the end of all processes
RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1}}
contrastive: {{two_pass: true}}
optim: {{learning_rate: 1e-3, warmup_clips: 24, clip_grad_norm: 1.0}}
train: {{global_batch: 8, micro_batch: 2, steps: {steps}, precision: fp32}}
checkpoint: {{every_steps: 4}}
monitor: {{log_every: 1, pictures_every: 0}}
watch: {{silence_seconds: 60}}
"""
VARIABLES = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_shards) -> Path:
    """A run file, and hostfiles with one and two places on each host."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "run.yaml").write_text(RUN.format(shards=tiny_shards, steps=STEPS))
    for slots in (1, 2):
        (folder / f"hostfile-{slots}").write_text(f"node-a slots={slots}\nnode-b slots={slots}\n")
    return folder


@pytest.fixture(scope="module")
def one_host(folder) -> dict[str, dict[int, float]]:
    """The curves of the same run on two ranks of one host."""
    finished = fork_ranks(2, PRETRAIN, str(folder / "run.yaml"), f"run_dir={folder / 'one-host'}", scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return losses(folder / "one-host")


def losses(run_dir: Path) -> dict[str, dict[int, float]]:
    return {tag: points for tag, points in read_curves(run_dir).items() if tag.startswith(("loss/", "optim/"))}


def assert_same_losses(run_dir: Path, truth: dict[str, dict[int, float]]) -> None:
    found = losses(run_dir)
    assert set(truth["loss/total"]) == set(range(1, STEPS + 1))
    assert found.keys() == truth.keys()
    for tag, points in truth.items():
        assert found[tag] == pytest.approx(points, rel=1e-5, abs=1e-7), tag


def saved(run_dir: Path) -> list[str]:
    return [folder.name for folder in whole_checkpoints(run_dir)]


def ranks(host: Host) -> list[psutil.Process]:
    return [process for process in host.processes() if str(PRETRAIN) in (process.info["cmdline"] or [])[:3]]


def assert_nothing_left(host: Host) -> None:
    assert [process.info["cmdline"] for process in host.processes()] == []
    assert host.shared_memory() == []


@pytest.mark.skipif(
    " " in str(PRETRAIN), reason="DeepSpeed's pdsh runner does not quote a checkout's path with a blank"
)
def test_deepspeed_on_two_hosts_goes_on_when_the_link_comes_back_after_ten_seconds(hosts, folder, one_host):
    a, b = hosts
    run_dir = folder / "pdsh"
    (folder / "deepspeed_env").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    started = a.start(
        "deepspeed", "--hostfile", str(folder / "hostfile-1"), str(PRETRAIN),
        str(folder / "run.yaml"), f"run_dir={run_dir}",
        log=folder / "pdsh.log", DS_ENV_FILE=str(folder / "deepspeed_env"),
    )  # fmt: skip
    wait_until(lambda: bool(saved(run_dir)) or started.poll() is not None, 200, "no checkpoint")
    a.set_link("down")
    assert {rank.environ()["OMP_NUM_THREADS"] for rank in ranks(b)} == {"1"}  # .deepspeed_env has come along
    time.sleep(2)
    before = saved(run_dir)
    time.sleep(8)
    assert saved(run_dir) == before and f"step-{STEPS:08d}" not in before

    a.set_link("up")

    assert started.wait(120) == 0, (folder / "pdsh.log").read_text()
    assert_same_losses(run_dir, one_host)
    for host in hosts:
        assert_nothing_left(host)


def test_cavmae_launch_trains_on_two_ranks_of_each_of_two_hosts(hosts, folder, one_host):
    a, _ = hosts
    run_dir, log = folder / "ssh", folder / "ssh.log"
    started = a.start(
        "cavmae", "launch", str(folder / "run.yaml"), f"run_dir={run_dir}", "--hostfile", str(folder / "hostfile-2"),
        log=log, **VARIABLES,
    )  # fmt: skip
    assert started.wait(240) == 0, log.read_text()
    assert "launch: 2 hosts x 2 ranks: node-a, node-b\n" in log.read_text()
    assert_same_losses(run_dir, one_host)
    for host in hosts:
        assert_nothing_left(host)


def test_a_link_that_is_gone_for_good_ends_both_sides_and_one_host_goes_on(hosts, folder, one_host):
    # Given a run on two hosts, each with a log of its own, that has saved something
    silence = f"watch.silence_seconds={SILENCE_S}"
    run_dir, logs = folder / "cut", [folder / "cut-a.log", folder / "cut-b.log"]
    started = [
        host.start(
            "torchrun", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={number}", "--master_addr=node-a",
            "--master_port=29500", str(PRETRAIN), str(folder / "run.yaml"), f"run_dir={run_dir}", silence,
            log=logs[number], **VARIABLES,
        )
        for number, host in enumerate(hosts)
    ]  # fmt: skip
    wait_until(lambda: bool(saved(run_dir)) or any(one.poll() is not None for one in started), 200, "no checkpoint")
    # When the link is cut
    hosts[0].set_link("down")
    try:
        # Then both sides end in time and say whom they miss, and nothing stays behind
        wait_until(lambda: not any(map(ranks, hosts)), SILENCE_S + TO_END_S, "ranks that wait for ever")
        for one in started:
            assert one.wait(60) != 0
        for log, missing in zip(logs, ("rank 0: rank 1 (host node-b", "rank 1: rank 0 (host node-a"), strict=True):
            assert missing in log.read_text()
        for host in hosts:
            assert_nothing_left(host)
        assert f"step-{STEPS:08d}" not in saved(run_dir)
        # And one host goes on alone with the same global batch
        log = folder / "alone.log"
        alone = hosts[0].start(
            "cavmae", "launch", str(folder / "run.yaml"), f"run_dir={run_dir}", silence,
            "--hostfile", str(folder / "hostfile-1"), "--min-hosts", "1", log=log, **VARIABLES,
        )  # fmt: skip
        assert alone.wait(240) == 0, log.read_text()
        assert "launch: node-b does not answer: " in log.read_text()
        assert "launch: 1 host x 1 rank: node-a\n" in log.read_text()
        assert_same_losses(run_dir, one_host)
    finally:
        hosts[0].set_link("up")

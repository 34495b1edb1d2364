"""A run to which everything happens ends with the losses, the clips and the weights of a run to which nothing does."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cavmae_ds.checkpoint import checkpoint_root, read_weights
from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.folder import UNFINISHED
from cavmae_ds.data.storage import open_store
from cavmae_ds.evaluation.roc_curves import read_curves
from tests.chaos import disturbances as to
from tests.chaos.supervised import SupervisedRun
from tests.data.small_shards import small_shards
from tests.ranks import fork_ranks
from tests.s3_server import RestartableServer

NOTING_RANK = Path(__file__).with_name("noting_rank.py")
EVERY_STEPS = 5
RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1, download_retries: 100}}
optim: {{learning_rate: 1e-3, warmup_clips: 24, clip_grad_norm: 1.0}}
train: {{global_batch: 8, micro_batch: 2, steps: {steps}, precision: fp32, ema_clips: 40}}
checkpoint: {{every_steps: {every_steps}}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 0}}
"""


class Stage(NamedTuple):
    """What a run to be disturbed stands on."""

    shards: Path
    server: RestartableServer
    bucket: str
    cache_limit_gib: float  # four of the six shards: they are fetched again and again


@pytest.fixture
def stage(tmp_path, tiny_shards, monkeypatch) -> Iterator[Stage]:
    shards = small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=4)
    sizes = [shard["raw_data"]["bytes"] for shard in json.loads((shards / "index.json").read_text())["shards"]]
    assert len(sizes) == 6
    (tmp_path / "seaweedfs").mkdir()
    with RestartableServer(tmp_path / "seaweedfs") as server:
        for name, value in server.address.environment.items():
            monkeypatch.setenv(name, value)
        bucket = server.address.fresh_bucket()
        store = open_store(f"s3://{bucket}/shards")
        for file in shards.iterdir():
            store.put_bytes(file.name, file.read_bytes())
        yield Stage(shards, server, bucket, 4.5 * max(sizes) / 2**30)


def undisturbed(stage: Stage, folder: Path, run_file: Path) -> Path:
    """The run folder of the same run from shards on the disk, with its notes beside it."""
    folder.mkdir()
    arguments = (str(folder), str(run_file), f"run_dir={folder / 'run'}", "checkpoint.every_steps=1000")
    finished = fork_ranks(2, NOTING_RANK, *arguments, scratch=folder, seconds=1500)
    assert finished.returncode == 0, finished.stdout
    return folder / "run"


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """What was learned, not how fast, nor what was noticed since a start."""
    others = ("perf/", "ranks/", "memory/", "checkpoint/", "guard/")
    return {tag: points for tag, points in read_curves(run_dir).items() if not tag.startswith(others)}


def clips_of_steps(run_dir: Path) -> dict[tuple[int, int], set[tuple[int, ...]]]:
    """(rank, step) -> the clips of that step, of every process that took it."""
    noted: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for rank in range(2):
        for line in (run_dir.parent / f"rank-{rank}.jsonl").read_text().splitlines():
            step, clips = json.loads(line)
            noted.setdefault((rank, step), set()).add(tuple(clips))
    return noted


def survive(stage: Stage, folder: Path, steps: int, pace_s: float, seed: int, plan: Sequence[to.Disturbance]) -> None:
    """Disturb a run by plan; it must not show."""
    run_file, address, chance = folder / "run.yaml", f"s3://{stage.bucket}/run", random.Random(seed)
    run_file.write_text(RUN.format(shards=stage.shards, steps=steps, every_steps=EVERY_STEPS))
    truth = undisturbed(stage, folder / "undisturbed", run_file)
    disturbed = folder / "disturbed"
    disk = checkpoint_root(disturbed / "run")
    mounted = to.small_disk(disk, "16m")
    started = time.monotonic()
    run = SupervisedRun(
        run_file, disturbed, pace_s,
        f"data.train=s3://{stage.bucket}/shards", f"data.cache={folder / 'cache'}",
        f"data.cache_limit_gib={stage.cache_limit_gib}", f"checkpoint.address={address}", "watch.silence_seconds=15",
    )  # fmt: skip
    try:
        for number, disturb in enumerate(plan, start=1):
            if disturb is to.full_disk and not mounted:
                tell("left out: full_disk, a small file system cannot be mounted here")
                continue
            run.until_saved()
            time.sleep(chance.uniform(0, EVERY_STEPS * pace_s))
            tell(f"{time.monotonic() - started:4.0f} s, step {run.saved} or later, {number}: {disturb.__name__}")
            disturb(to.Scene(run, stage.server, chance))
        run.until_saved()
        code = run.finish()
        tell(f"{time.monotonic() - started:4.0f} s: ended with {code} after {run.starts} starts of the command")
        assert code == 0, run.printed[-3000:]
        assert run.left_behind() == []
        assert "Traceback" not in run.printed
        assert_same(run.run_dir, truth, steps)
        assert open_bucket(address).steps()[-1] == steps and open_bucket(address).steps(UNFINISHED) == []
    finally:
        run.end()
        if mounted:
            subprocess.run(["umount", disk], check=True)


def assert_same(run_dir: Path, truth: Path, steps: int) -> None:
    true_curves = curves(truth)
    assert set(true_curves) >= {"loss/total", "loss/contrastive", "optim/grad_norm", "data/bad_clips"}
    assert set(true_curves["loss/total"]) == set(range(1, steps + 1))
    assert curves(run_dir) == true_curves  # bitwise, at every step
    true_clips, clips = clips_of_steps(truth), clips_of_steps(run_dir)
    assert len(true_clips) == 2 * steps and all(len(once) == 1 for once in true_clips.values())
    assert clips == true_clips  # whenever a step was taken, it was these clips
    for ema in (False, True):
        weights, true_weights = read_weights(run_dir, ema), read_weights(truth, ema)
        assert all(torch.equal(weights[name], true_weights[name]) for name in true_weights)


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_disturbed_five_times_ends_as_the_undisturbed_one(stage, tmp_path):
    plan = (
        to.bucket_away_while_reading, to.full_disk, to.kill_a_rank_in_a_save, to.bucket_away_while_saving,
        to.freeze_a_rank_for_a_moment,
    )  # fmt: skip
    survive(stage, tmp_path, steps=120, pace_s=0.3, seed=0, plan=plan)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_a_run_disturbed_twenty_times_ends_as_the_undisturbed_one(stage, tmp_path):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    plan = list(to.ALL) + chance.choices(to.ALL, k=20 - len(to.ALL))
    chance.shuffle(plan)
    tell(f"\nseed {seed}")
    survive(stage, tmp_path, steps=500, pace_s=0.2, seed=seed, plan=plan)

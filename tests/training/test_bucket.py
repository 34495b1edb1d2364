"""The whole main job on a real bucket: shards in S3, two ranks, ZeRO-3 in bf16, curves and pictures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cavmae_ds.checkpoint import read_weights
from cavmae_ds.data.storage import open_store
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from tests.data.small_shards import small_shards
from tests.ranks import CHECKOUT, PRETRAIN, command, environment, fork_cavmae, fork_ranks
from tests.s3_server import RestartableServer

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero{stage}.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1, cache: {folder}/cache}}
train: {{global_batch: 8, micro_batch: 2, steps: 6, precision: bf16}}
monitor: {{log_every: 2, pictures_every: 3, pictures: 2}}
"""
TAGS = {
    "loss/total", "loss/mae_audio", "loss/mae_image", "loss/contrastive", "retrieval/in_batch_accuracy", "optim/lr",
    "optim/grad_norm", "perf/clips_per_second", "perf/clips_per_second_per_gpu", "perf/data_wait_share", "perf/mfu",
    "memory/peak_gib", "data/bad_clips",
}  # fmt: skip


@pytest.fixture
def bucket_shards(s3_bucket, tiny_shards) -> str:
    address = f"s3://{s3_bucket}/tiny"
    store = open_store(address)
    for file in sorted(path for path in tiny_shards.rglob("*") if path.is_file()):
        store.put_bytes(str(file.relative_to(tiny_shards)), file.read_bytes())
    return address


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_pretrain_in_bf16_from_a_bucket_and_show_what_they_do(stage, bucket_shards, tmp_path):
    run_file, run_dir = tmp_path / "run.yaml", tmp_path / "run"
    run_file.write_text(RUN.format(folder=tmp_path, stage=stage, shards=bucket_shards))

    finished = fork_ranks(2, PRETRAIN, str(run_file), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    curves = read_curves(run_dir)
    assert set(curves) >= TAGS
    assert all(set(curves[tag]) == {2, 4, 6} for tag in TAGS)
    assert all(math.isfinite(value) for points in curves.values() for value in points.values())
    assert curves["loss/contrastive"][2] > 0 and curves["optim/grad_norm"][2] > 0
    assert all(0 < share < 1 for share in curves["perf/mfu"].values())
    assert set(curves["data/bad_clips"].values()) == {0.0}
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    pictures = events.Images("reconstructions")
    assert [picture.step for picture in pictures] == [3, 6] and pictures[0].width > 800
    model = CAVMAE(ModelConfig(**_sizes()))
    model.load_state_dict(read_weights(run_dir), strict=True)

    shown = fork_cavmae("evaluate", run_dir, "--data", bucket_shards)
    assert shown.returncode == 0, shown.stderr
    assert "retrieval among 24 clips" in shown.stdout
    (fetched,) = (tmp_path / "cache").iterdir()  # a folder of this address alone: training and evaluation share it
    assert (fetched / "index.json").is_file()


def _sizes() -> dict:
    import yaml

    return yaml.safe_load(RUN.format(folder="", stage=1, shards=""))["model"]


def test_the_secret_of_the_bucket_is_in_no_file_and_no_output(bucket_shards, s3_server, tmp_path):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN.format(folder=tmp_path, stage=2, shards=bucket_shards))
    finished = fork_ranks(1, PRETRAIN, str(run_file), scratch=tmp_path)
    assert finished.returncode == 0, finished.stdout
    assert s3_server.secret_key not in finished.stdout
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or s3_server.secret_key.encode() not in path.read_bytes(), path


STEPS = 30
OUTAGE = """\
run_dir: {folder}/{name}
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1, cache: {folder}/cache-{name}, cache_limit_gib: {limit}, predownload: 2}}
train: {{global_batch: 8, micro_batch: 2, steps: {steps}, precision: fp32}}
monitor: {{log_every: 1, pictures_every: 0}}
"""


@pytest.mark.slow
def test_a_server_that_is_away_for_20_seconds_costs_nothing_but_time(tiny_shards, tmp_path, monkeypatch):
    """Half of the shards fit into the cache, so shards are fetched all the time."""
    small = small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=3)
    limit = 4.2 * max(path.stat().st_size for path in small.glob("*.mds")) / 2**30
    (tmp_path / "server").mkdir()
    with RestartableServer(tmp_path / "server") as server:
        for name, value in server.address.environment.items():
            monkeypatch.setenv(name, value)
        shards = f"s3://{server.address.fresh_bucket()}/small"
        for file in small.iterdir():
            open_store(shards).put_bytes(file.name, file.read_bytes())
        for name in ("undisturbed", "outage"):
            (tmp_path / f"{name}.yaml").write_text(
                OUTAGE.format(folder=tmp_path, name=name, shards=shards, limit=limit, steps=STEPS)
            )
        finished = fork_ranks(2, PRETRAIN, str(tmp_path / "undisturbed.yaml"), scratch=tmp_path)
        assert finished.returncode == 0, finished.stdout

        with (tmp_path / "log").open("w") as log:
            running = subprocess.Popen(
                command(2, PRETRAIN, str(tmp_path / "outage.yaml")),
                env=environment(tmp_path), cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            while steps_done(tmp_path / "outage") < 4:
                assert running.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)  # reading curves takes from what it waits for
            server.kill()
            time.sleep(20)
            assert running.poll() is None, (tmp_path / "log").read_text()
            assert 4 <= steps_done(tmp_path / "outage") < STEPS  # it does wait
            server.start()
            assert running.wait(timeout=200) == 0, (tmp_path / "log").read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)

    said = (tmp_path / "log").read_text()
    assert "next attempt in" in said and server.address.secret_key not in said and "Traceback" not in said
    truth, curves = (read_curves(tmp_path / name) for name in ("undisturbed", "outage"))
    for tag in truth:
        if tag.startswith(("loss/", "retrieval/", "optim/", "data/")):  # the others are of time and memory
            assert set(truth[tag]) == set(range(1, STEPS + 1)) and curves[tag] == truth[tag]  # bitwise, at every step


def steps_done(run_dir: Path) -> int:
    begun = any(run_dir.glob("tensorboard/events.*"))
    return max(read_curves(run_dir).get("loss/total", {0: 0.0})) if begun else 0

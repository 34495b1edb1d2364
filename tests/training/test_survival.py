"""DESIGN 2.4: kill any process at any instant, start the same command again, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cavmae_ds.checkpoint import checkpoint_root, read_weights, whole_checkpoints
from cavmae_ds.weights.load import load_model
from tests.ranks import CHECKOUT, PRETRAIN, command, environment, fork_cavmae, fork_ranks

pytestmark = pytest.mark.slow

STEPS = 30
RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1}}
optim: {{learning_rate: 1e-3, warmup_clips: 24, clip_grad_norm: 1.0}}
train: {{global_batch: 8, micro_batch: 2, steps: {steps}, precision: fp32, ema_clips: 40}}
checkpoint: {{every_steps: 4}}
monitor: {{log_every: 1, pictures_every: 0}}
"""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_shards) -> Path:
    path = tmp_path_factory.mktemp("survival") / "run.yaml"
    path.write_text(RUN.format(shards=tiny_shards, steps=STEPS))
    return path


@pytest.fixture(scope="module")
def undisturbed(run_file) -> Path:
    """The run folder of a run that nobody killed."""
    run_dir = run_file.parent / "undisturbed"
    finish(run_file, run_dir)
    return run_dir


def finish(run_file: Path, run_dir: Path) -> None:
    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", scratch=run_file.parent)
    assert finished.returncode == 0, finished.stdout


def kill_one_rank(run_file: Path, run_dir: Path, rank: int, when) -> None:
    """Start a run, SIGKILL one of its two ranks as soon as when() says so, wait until the launcher gives up."""
    with (run_dir.parent / f"{run_dir.name}.log").open("w") as output:
        launcher = subprocess.Popen(
            command(2, PRETRAIN, str(run_file), f"run_dir={run_dir}"),
            env=environment(run_file.parent), cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline, process = time.monotonic() + 240, None  # found early: looking for it takes longer than a save
            while not (process and when()):
                assert launcher.poll() is None, Path(output.name).read_text()
                assert time.monotonic() < deadline, Path(output.name).read_text()
                time.sleep(0.0005)
                process = process or rank_process(launcher.pid, rank)
            process.send_signal(signal.SIGKILL)
            assert launcher.wait(timeout=240) != 0
        finally:
            for process in [*psutil.Process(launcher.pid).children(recursive=True)] if launcher.poll() is None else []:
                process.kill()
            launcher.kill()


def rank_process(launcher: int, rank: int) -> psutil.Process | None:
    for process in psutil.Process(launcher).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if f"--local_rank={rank}" in process.cmdline() and str(PRETRAIN) in process.cmdline():
                return process
    return None


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Every loss curve as TensorBoard shows it: tag -> step -> value."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss/", "retrieval/", "optim/"))]
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in tags}


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    truth = curves(undisturbed)
    assert set(truth) >= {"loss/total", "loss/contrastive", "optim/grad_norm"}
    assert set(truth["loss/total"]) == set(range(1, STEPS + 1))
    assert curves(run_dir) == truth  # bitwise, at every step
    for ema in (False, True):
        weights, true_weights = read_weights(run_dir, ema), read_weights(undisturbed, ema)
        assert all(torch.equal(weights[name], true_weights[name]) for name in true_weights)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_the_middle_of_a_step_costs_only_the_steps_since_the_checkpoint(rank, run_file, undisturbed):
    run_dir = run_file.parent / f"killed-rank-{rank}"

    def two_checkpoints_and_some_steps() -> bool:
        return len(whole_checkpoints(run_dir)) == 2 and max(curves(run_dir)["loss/total"]) % 4 == 2

    kill_one_rank(run_file, run_dir, rank, two_checkpoints_and_some_steps)
    assert int(whole_checkpoints(run_dir)[-1].name.removeprefix("step-")) < STEPS

    finish(run_file, run_dir)

    assert_same_run(run_dir, undisturbed)


def test_a_rank_killed_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(run_file, undisturbed):
    for attempt in range(8):
        run_dir = run_file.parent / f"killed-in-save-{attempt}"
        second = checkpoint_root(run_dir) / "step-00000008.partial"
        kill_one_rank(run_file, run_dir, attempt % 2, lambda second=second: second.is_dir())
        if second.is_dir():  # else the save was over before the signal arrived
            break
    assert [folder.name for folder in whole_checkpoints(run_dir)] == ["step-00000004"]

    finish(run_file, run_dir)

    assert not second.exists()
    assert_same_run(run_dir, undisturbed)


def test_a_finished_run_started_again_does_nothing(run_file, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in checkpoint_root(undisturbed).rglob("*.safetensors")}
    finish(run_file, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in checkpoint_root(undisturbed).rglob("*.safetensors")} == before


def test_evaluation_takes_the_weights_or_their_running_mean(undisturbed, tiny_shards):
    weights, mean = load_model(undisturbed), load_model(undisturbed, ema=True)
    assert not torch.equal(weights.model.norm_a.weight, mean.model.norm_a.weight)
    assert torch.equal(mean.model.norm_a.weight, read_weights(undisturbed, ema=True)["norm_a.weight"])

    finished = fork_cavmae("evaluate", undisturbed, "--data", tiny_shards, "--weights", "ema")

    assert finished.returncode == 0, finished.stderr
    assert json.loads((undisturbed / "ema.retrieval.json").read_text())["ema"] is True


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert [folder.name for folder in whole_checkpoints(undisturbed)] == ["step-00000028", "step-00000030"]


@pytest.mark.parametrize(
    ("ranks", "override", "expected"),
    [
        (
            1,
            "train.micro_batch=2",
            "among 4, this run (ranks: 1, train.micro_batch: 2) among 2; set train.micro_batch: 4",
        ),
        (2, "model.embed_dim=64", "model.embed_dim was 32, now 64"),
        (2, "train.seed=5", "train.seed was 0, now 5"),
        (2, "train.global_batch=16", "train.global_batch was 8, now 16"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_sentence(ranks, override, expected, run_file, undisturbed):
    finished = fork_ranks(ranks, PRETRAIN, str(run_file), f"run_dir={undisturbed}", override, scratch=run_file.parent)
    assert finished.returncode == 2
    assert expected in finished.stdout and "Traceback" not in finished.stdout


def test_a_checkpoint_with_a_truncated_file_is_named_and_the_one_before_it_taken(run_file, undisturbed, tmp_path):
    run_dir = tmp_path / "damaged"
    shutil.copytree(undisturbed, run_dir)
    shard = next(whole_checkpoints(run_dir)[-1].glob("rank-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    finished = fork_ranks(2, PRETRAIN, str(run_file), f"run_dir={run_dir}", scratch=run_file.parent)
    assert finished.returncode == 0, finished.stdout
    assert shard.name in finished.stdout and "resumed from step 28" in finished.stdout
    assert_same_run(run_dir, undisturbed)

"""A run that moves from 2 ranks to 1 and to 4, and from ZeRO 1 to 2 and to 3, has the curves of one that stayed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.layout import EMA, MASTER
from cavmae_ds.checkpoint.weights import export_weights
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from tests.ranks import PRETRAIN, fork_ranks

pytestmark = pytest.mark.slow

# eps: a bias that no loss depends on has a gradient of rounding errors, of which Adam would make steps.
# The rates of a cosine would hang on the steps of the whole run, and this one is prolonged twice.
RUN = """\
ds_config: ds_configs/zero1.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1}}
optim: {{learning_rate: 1e-3, eps: 1.0e-5, warmup_clips: 24, clip_grad_norm: 1.0, schedule: step,
  decay_start_epoch: 1, decay_every_epochs: 1}}
train: {{global_batch: 8, micro_batch: 2, steps: 12, precision: fp32, ema_clips: 40}}
checkpoint: {{every_steps: 4}}
monitor: {{log_every: 1, pictures_every: 0}}
"""
# Clips compared with each other: 4, on 2 ranks 2 of each; two micro-batches a step.
LEGS = [
    (2, "train.steps=4"),
    (1, "train.steps=8", "ds_config=ds_configs/zero2.json", "train.micro_batch=4"),
    (4, "train.steps=12", "ds_config=ds_configs/zero3.json", "train.micro_batch=1"),
]


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory, tiny_shards) -> tuple[Path, Path]:
    """Of the run that stayed and of the one that moved."""
    folder = tmp_path_factory.mktemp("moving")
    run_file = folder / "run.yaml"
    run_file.write_text(RUN.format(shards=tiny_shards))
    stayed, moved = folder / "stayed", folder / "moved"
    for run_dir, legs in ((stayed, [(2,)]), (moved, LEGS)):
        for ranks, *overrides in legs:
            finished = fork_ranks(ranks, PRETRAIN, str(run_file), f"run_dir={run_dir}", *overrides, scratch=folder)
            assert finished.returncode == 0, finished.stdout
    return stayed, moved


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss/", "retrieval/", "optim/"))]
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in tags}


def test_its_curves_are_those_of_the_run_that_stayed(run_dirs):
    truth, found = (curves(run_dir) for run_dir in run_dirs)
    assert found.keys() == truth.keys() >= {"loss/total", "loss/contrastive", "optim/grad_norm", "optim/lr"}
    assert len(set(truth["optim/lr"].values())) > 5
    for tag, points in truth.items():
        assert found[tag] == pytest.approx(points, rel=1e-5, abs=1e-7), tag
        assert points.keys() == set(range(1, 13))


def test_its_running_mean_is_that_of_the_run_that_stayed(run_dirs):
    truth, found = (read_weights(run_dir, ema=True) for run_dir in run_dirs)
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_its_checkpoints_say_who_wrote_them(run_dirs):
    before, last = (read_manifest(folder) for folder in whole_checkpoints(run_dirs[1]))
    assert (before.step, before.ranks, before.zero_stage) == (8, 1, 2)
    assert (last.step, last.ranks, last.zero_stage) == (12, 4, 3)
    assert last.clips_seen == 96
    assert last.states == ["master", "exp_avg", "exp_avg_sq", "ema"]


@pytest.mark.parametrize("ema", [False, True])
def test_exported_weights_are_a_model_by_themselves(ema, run_dirs, tmp_path):
    file = tmp_path / "weights.safetensors"
    export_weights(whole_checkpoints(run_dirs[1])[-1], file, EMA if ema else MASTER)

    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    normalisation = training_normalisation(float(header["audio_mean"]), float(header["audio_std"]))
    model = CAVMAE(ModelConfig.model_validate_json(header["model"]), normalisation)
    model.load_state_dict(load_file(file), strict=True)

    weights = read_weights(run_dirs[1], ema)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert (header["step"], header["clips_seen"], header["weights"]) == ("12", "96", "ema" if ema else "master")
    assert list(tmp_path.iterdir()) == [file]

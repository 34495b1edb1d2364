"""A family of models and a task that the package does not know, each a folder of tests/ and a line in registered.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cavmae_ds
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.models import FAMILIES
from tests.ranks import fork_ranks, fork_script

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).resolve().parents[1] / "registered.py"
RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero2.json
data: {{train: {shards}, workers: 1, validation_share: 0.2}}
optim: {{learning_rate: 1.0e-3, schedule: constant}}
train: {{global_batch: 8, micro_batch: 2, steps: 4, precision: fp32}}
checkpoint: {{every_steps: 2}}
"""
TOY = """\
model: {family: toy, frame_size: 64}
monitor: {log_every: 1, pictures_every: 4, validate_every: 2, probe_every: 4, validate_batch: 4}
"""
ALIGN = """\
task: align
monitor: {log_every: 1, pictures_every: 0}
"""
SMALL_CAVMAE = """\
model: {embed_dim: 16, num_heads: 2, modality_specific_depth: 1, shared_depth: 1, decoder_embed_dim: 16,
  decoder_depth: 1, decoder_num_heads: 2, image_size: 64, audio_frames: 64}
"""


def train(run_file: Path, scratch: Path) -> str:
    """Two ranks under ZeRO-2; what they print."""
    finished = fork_ranks(2, PROGRAMS, "train", str(run_file), scratch=scratch)
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def command(*arguments: object) -> str:
    """`cavmae ...`; what it prints."""
    finished = fork_script(PROGRAMS, *map(str, arguments))
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture(scope="module")
def toy_run(tiny_shards, tmp_path_factory) -> Path:
    """The folder of a finished pretraining of the toy family, its run file beside it."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "run.yaml").write_text(RUN.format(folder=folder, shards=tiny_shards) + TOY)
    train(folder / "run.yaml", folder)
    return folder / "run"


def test_it_pretrains_with_curves_of_its_own_targets_validation_probe_and_pictures(toy_run):
    curves = read_curves(toy_run)
    for name in ("loss/mae_audio", "loss/mae_video"):
        assert list(curves[name]) == [1, 2, 3, 4] and all(0 < value < 4 for value in curves[name].values())
    assert list(curves["validation/mae_video"]) == [2, 4]
    assert curves["probe/chance_recall_at_1"][4] > 0
    for step in (1, 2, 3, 4):
        parts = (curves[f"loss/{part}"][step] for part in ("mae_audio", "mae_video", "contrastive"))
        audio, video, contrastive = parts
        assert curves["loss/total"][step] == pytest.approx(audio + video + 0.01 * contrastive, rel=1e-5)


def resumed(run_dir: Path, folder: Path) -> dict[str, dict[int, float]]:
    """The curves of a run that goes on in another folder from the checkpoint of step 2."""
    shutil.copytree(run_dir / "checkpoints" / "step-00000002", folder / "run" / "checkpoints" / "step-00000002")
    run_file = run_dir.with_name("run.yaml").read_text().replace(str(run_dir.parent), str(folder))
    (folder / "run.yaml").write_text(run_file)
    assert "resumed from step 2" in train(folder / "run.yaml", folder)
    return read_curves(folder / "run")


def test_it_resumes_with_the_curves_it_had(toy_run, tmp_path):
    before, after = read_curves(toy_run), resumed(toy_run, tmp_path)
    for name in ("loss/total", "loss/mae_video", "validation/total"):
        assert after[name] == {step: value for step, value in before[name].items() if step > 2}  # bit by bit


def test_it_is_planned(toy_run):
    printed = command("plan", toy_run.with_name("run.yaml"), "--gpus", 8, "--gpu", "h200")
    assert "GiB" in printed


def test_it_is_evaluated_drawn_and_exported(toy_run, tiny_shards, tmp_path):
    command("evaluate", toy_run, "--data", tiny_shards)
    scores = json.loads((toy_run / "retrieval.json").read_text())
    assert 0 <= scores["audio_to_image"]["recall_at_1"] <= 1
    command("inpaint", toy_run, "--data", tiny_shards, "--out", tmp_path / "rebuilt.png", "--clips", 2)
    assert json.loads((tmp_path / "rebuilt.json").read_text())["clips"][0]["loss_video"] > 0
    command("export", toy_run, "--out", tmp_path / "toy.safetensors")
    command("features", tmp_path / "toy.safetensors", tiny_shards, "--out", tmp_path / "features.npz")
    assert np.load(tmp_path / "features.npz")["image"].shape == (24, 32)


def test_it_embeds_a_video(toy_run, tiny_shards, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.models.toy")
    video = next((tiny_shards.parent / "videos").rglob("*.mp4"))
    embedding = cavmae_ds.load(toy_run).embed(video)
    assert embedding.audio.shape == embedding.image.shape == (32,)
    assert torch.isfinite(embedding.image).all()


@pytest.mark.parametrize("model", [TOY.partition("\n")[0] + "\n", SMALL_CAVMAE], ids=["toy", "cavmae"])
def test_a_new_task_trains_either_family_and_resumes(model, tiny_shards, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "run.yaml").write_text(RUN.format(folder=folder, shards=tiny_shards) + ALIGN + model)
    train(folder / "run.yaml", folder)
    curves = read_curves(folder / "run")
    assert list(curves["align/cosine"]) == [1, 2, 3, 4]
    assert curves["loss/total"] == {s: pytest.approx(1 - c, abs=1e-6) for s, c in curves["align/cosine"].items()}
    assert curves["align/cosine"][4] > curves["align/cosine"][1]
    assert resumed(folder / "run", tmp_path)["loss/total"] == {s: curves["loss/total"][s] for s in (3, 4)}

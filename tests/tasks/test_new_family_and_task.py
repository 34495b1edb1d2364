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

TESTS = Path(__file__).resolve().parents[1]
PROGRAMS, TOY, ALIGN = (TESTS / name for name in ("registered.py", "models/toy/run.yaml", "tasks/align/run.yaml"))
SMALL = (
    "embed_dim=16", "num_heads=2", "modality_specific_depth=1", "shared_depth=1", "decoder_embed_dim=16",
    "decoder_depth=1", "decoder_num_heads=2", "image_size=64", "audio_frames=64",
)  # fmt: skip


def train(run_file: Path, shards: Path, run_dir: Path, *overrides: str) -> str:
    """Two ranks under ZeRO-2; what they print."""
    finished = fork_ranks(
        2, PROGRAMS, "train", str(run_file), f"data.train={shards}", f"run_dir={run_dir}", *overrides,
        scratch=run_dir.parent,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def resumed(run_file: Path, shards: Path, run_dir: Path, folder: Path, *overrides: str) -> dict[str, dict[int, float]]:
    """The curves of a run that goes on in another folder from its checkpoint of step 2."""
    shutil.copytree(run_dir / "checkpoints" / "step-00000002", folder / "run" / "checkpoints" / "step-00000002")
    assert "resumed from step 2" in train(run_file, shards, folder / "run", *overrides)
    return read_curves(folder / "run")


def command(*arguments: object) -> str:
    """`cavmae ...`; what it prints."""
    finished = fork_script(PROGRAMS, *map(str, arguments))
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture(scope="module")
def toy_run(tiny_shards, tmp_path_factory) -> Path:
    """The folder of a finished pretraining of the toy family."""
    folder = tmp_path_factory.mktemp("toy")
    train(TOY, tiny_shards, folder / "run")
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


def test_it_resumes_with_the_curves_it_had(toy_run, tiny_shards, tmp_path):
    before, after = read_curves(toy_run), resumed(TOY, tiny_shards, toy_run, tmp_path)
    for name in ("loss/total", "loss/mae_video", "validation/total"):
        assert after[name] == {step: value for step, value in before[name].items() if step > 2}  # bit by bit


@pytest.mark.parametrize("run_file", [TOY, ALIGN], ids=["toy", "align"])
def test_it_is_planned(run_file):
    planned = json.loads(command("plan", run_file, "--gpus", 2, "--clips", 96, "--json"))
    assert planned["configured"]["bytes"]["activations"] > 0 and planned["flops_per_clip"] > 0


def test_it_is_evaluated_drawn_and_exported(toy_run, tiny_shards, tmp_path):
    command("evaluate", toy_run, "--data", tiny_shards)
    scores = json.loads((toy_run / "retrieval.json").read_text())
    assert 0 <= scores["audio_to_image"]["recall_at_1"] <= 1
    command("inpaint", toy_run, "--data", tiny_shards, "--out", tmp_path / "rebuilt.png", "--clips", 2)
    assert json.loads((tmp_path / "rebuilt.json").read_text())["clips"][0]["loss_video"] > 0
    command("export", toy_run, "--out", tmp_path / "toy.safetensors")
    command("export", toy_run, "--out", tmp_path / "toy.pt2")
    command("features", tmp_path / "toy.safetensors", tiny_shards, "--out", tmp_path / "features.npz")
    assert np.load(tmp_path / "features.npz")["image"].shape == (24, 32)


def test_it_embeds_a_video(toy_run, tiny_shards, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.models.toy")
    video = next((tiny_shards.parent / "videos").rglob("*.mp4"))
    embedding = cavmae_ds.load(toy_run).embed(video)
    assert embedding.audio.shape == embedding.image.shape == (32,)
    assert torch.isfinite(embedding.image).all()


@pytest.mark.parametrize(
    "model", [("model.family=toy", "model.image_size=64"), [f"model.{size}" for size in SMALL]], ids=["toy", "cavmae"]
)
def test_a_new_task_trains_either_family_and_resumes(model, tiny_shards, tmp_path):
    train(ALIGN, tiny_shards, tmp_path / "whole" / "run", *model)
    curves = read_curves(tmp_path / "whole" / "run")
    assert list(curves["align/cosine"]) == [1, 2, 3, 4]
    assert curves["loss/total"] == {s: pytest.approx(1 - c, abs=1e-6) for s, c in curves["align/cosine"].items()}
    assert curves["align/cosine"][4] > curves["align/cosine"][1]
    after = resumed(ALIGN, tiny_shards, tmp_path / "whole" / "run", tmp_path, *model)
    assert after["loss/total"] == {step: curves["loss/total"][step] for step in (3, 4)}

"""Validation sees every clip of its own once, never trains on it, and says the same on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cavmae_ds.data.loading.sources import held_out
from cavmae_ds.evaluation.roc_curves import read_curves
from tests.data.small_shards import small_shards
from tests.ranks import PRETRAIN, fork_ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("validation_worker.py")
RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero3.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
optim: {{schedule: constant}}
data: {{train: {shards}, workers: 1, validation_share: 0.2, validation: {validation}}}
train: {{global_batch: 8, micro_batch: 2, steps: 3, precision: fp32}}
monitor: {{log_every: 1, pictures_every: 0, validate_every: 2, validate_batch: 4}}
"""
FIELDS = {"total", "mae_audio", "mae_image", "contrastive", "in_batch_accuracy", "v2a_accuracy"}  # one direction


@pytest.fixture(scope="module")
def run_file(tiny_shards, tmp_path_factory) -> Path:
    """20 % of 24 clips and 5 more of a data set of their own: not a multiple of 4 clips, nor of ranks."""
    folder = tmp_path_factory.mktemp("validation")
    small_shards(tiny_shards, folder / "shards", range(5, 10), shard_clips=2)
    path = folder / "run.yaml"
    path.write_text(RUN.format(folder=folder, shards=tiny_shards, validation=folder / "shards"))
    return path


def test_losses_are_the_same_on_one_two_and_four_ranks_under_zero_3(run_file, tmp_path):
    found = []
    for ranks in (1, 2, 4):
        results = tmp_path / f"{ranks}.json"
        finished = fork_ranks(ranks, WORKER, str(run_file), "monitor.validate_batch=2", str(results), scratch=tmp_path)
        assert finished.returncode == 0, finished.stdout
        found.append(json.loads(results.read_text()))
    held = np.flatnonzero(held_out(0, 24, 0.2)).tolist()
    assert held and found[0]["seen"] == [*held, *range(24, 29)]
    assert (len(held) + 5, held) == (9, [4, 9, 11, 16])  # the last of 5 groups is short, and some rank has one less
    for other in found[1:]:
        assert other["seen"] == found[0]["seen"]
        assert other["losses"] == pytest.approx(found[0]["losses"], rel=1e-5)
    assert found[0]["losses"]["contrastive"] > 0


def test_pretraining_draws_validation_beside_the_losses_and_they_are_what_they_were_without_it(run_file, tmp_path):
    curves = []
    for name, every in (("with", 2), ("without", 0)):
        finished = fork_ranks(
            2, PRETRAIN, str(run_file), f"run_dir={tmp_path / name}", f"monitor.validate_every={every}",
            scratch=tmp_path,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout
        curves.append(read_curves(tmp_path / name))
    assert {tag.removeprefix("validation/") for tag in curves[0].keys() - curves[1].keys()} == FIELDS
    assert all(set(curves[0][f"validation/{field}"]) == {2, 3} for field in FIELDS)  # when due, and at the end
    assert 0 < curves[0]["validation/contrastive"][3] != curves[0]["validation/contrastive"][2]
    assert curves[0]["loss/total"] == curves[1]["loss/total"]  # bitwise: nothing else was touched

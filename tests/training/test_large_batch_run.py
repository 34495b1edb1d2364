"""The command itself with all that a large batch needs: two passes, chunks, recomputing, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cavmae_ds.evaluation.roc_curves import read_curves
from tests.ranks import PRETRAIN, fork_ranks

RUN = """\
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112, decoder_chunk: 1, checkpoint_towers: true}}
data: {{train: {shards}, workers: 1}}
contrastive: {{two_pass: true, direction: both, exchange: ring}}
loss: {{contrastive_weight: 0.1}}
optim: {{learning_rate: 1e-3}}
train: {{global_batch: 8, micro_batch: 2, steps: 4, precision: fp32}}
monitor: {{log_every: 1, pictures_every: 2}}
"""


def curves(folder: Path, shards: Path, ranks: int, stage: int) -> dict[str, dict[int, float]]:
    """The loss curves of a run that was stopped by its end."""
    (folder / "run.yaml").write_text(RUN.format(shards=shards))
    run_dir = folder / f"{ranks}-ranks"
    overrides = f"run_dir={run_dir}", f"ds_config=ds_configs/zero{stage}.json"
    finished = fork_ranks(ranks, PRETRAIN, str(folder / "run.yaml"), *overrides, scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return {tag: points for tag, points in read_curves(run_dir).items() if tag.startswith(("loss/", "optim/"))}


def test_a_two_pass_run_draws_the_same_curves_on_one_rank_and_on_two(tmp_path, tiny_shards):
    alone, shared = curves(tmp_path, tiny_shards, 1, stage=0), curves(tmp_path, tiny_shards, 2, stage=3)
    assert alone.keys() == shared.keys() >= {"loss/contrastive", "optim/grad_norm"}
    for tag, points in alone.items():
        assert len(points) == 4
        assert shared[tag] == pytest.approx(points, rel=1e-4), tag

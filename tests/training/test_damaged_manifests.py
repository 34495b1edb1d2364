"""A checkpoint whose manifest is damaged is set aside like one with damaged files, so that a start gets past it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.checkpoint.folder import file_hash
from cavmae_ds.checkpoint.manifest import CHECKSUM, MANIFEST, checksum
from tests.data.small_shards import small_shards
from tests.ranks import PRETRAIN, fork_ranks

pytestmark = pytest.mark.slow

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero1.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {folder}/shards, workers: 0}}
train: {{global_batch: 8, micro_batch: 8, steps: 8, precision: fp32}}
checkpoint: {{every_steps: 1, keep_last: 9}}
monitor: {{pictures_every: 0}}
"""
RANK = "rank-00000-of-00001.safetensors"


def no_vector(folder, values):
    """One tensor of no dimension, and the hash that goes with it."""
    tensors = load_file(folder / RANK)
    tensors[next(iter(tensors))] = torch.tensor(1.0)
    save_file(tensors, folder / RANK)
    record = {"bytes": (folder / RANK).stat().st_size, "sha256": file_hash(folder / RANK)}
    return values | {"files": {RANK: record}}


def scalars(**changes):
    return lambda _, values: values | {"scalars": values["scalars"] | changes}


# Step -> what is done to it; each but step 8's is written with a checksum that is right.
DAMAGE = {
    8: (lambda _, values: values | {"step": 1_000_000_000}, "checksum"),
    7: (lambda _, values: values | {"states": ["master"]}, "names no exp_avg"),
    6: (scalars(scheduled_steps=-5), "scalars.scheduled_steps"),
    5: (lambda _, values: values | {"config": values["config"] | {"init": 3}}, "config.init is no section"),
    4: (no_vector, f"{RANK}.* cannot be read"),
    3: (lambda _, values: values | {"scalars": {}}, "scalars.optimizer"),
    2: (scalars(skipped_steps="none"), "scalars.skipped_steps"),
}


def test_a_start_sets_every_damaged_manifest_aside_and_goes_on_from_the_one_before(tiny_shards, tmp_path):
    small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=24)
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path))
    begun = fork_ranks(1, PRETRAIN, str(tmp_path / "run.yaml"), scratch=tmp_path)
    assert begun.returncode == 0, begun.stdout
    for step, (damage, _) in DAMAGE.items():
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        values = json.loads((folder / MANIFEST).read_text())
        before = values.pop(CHECKSUM)
        changed = damage(folder, values)
        (folder / MANIFEST).write_text(json.dumps(changed | {CHECKSUM: before if step == 8 else checksum(changed)}))

    resumed = fork_ranks(1, PRETRAIN, str(tmp_path / "run.yaml"), scratch=tmp_path)

    assert resumed.returncode == 0, resumed.stdout
    assert "resumed from step 1 " in resumed.stdout and "Traceback" not in resumed.stdout
    lines = resumed.stdout.splitlines()
    for step, (_, what) in DAMAGE.items():
        (line,) = [line for line in lines if f"step-{step:08d}.damaged" in line]
        assert re.search(what, line), line
    assert len(whole_checkpoints(tmp_path / "run")) == 8

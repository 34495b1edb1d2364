"""DESIGN 2.4: a clip that cannot be decoded is counted and named, and too many of them end the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streaming import MDSWriter, StreamingDataset

from cavmae_ds.data.schema import MDS_COLUMNS
from cavmae_ds.evaluate.curves import read_curves
from tests.launcher import PRETRAIN, launch

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero1.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {folder}/shards, workers: {workers}, max_bad_share: {allowed}}}
train: {{global_batch: 8, micro_batch: 4, steps: 9, precision: fp32}}
monitor: {{log_every: 3, pictures_every: 0}}
"""


@pytest.fixture
def damaged_shards(tiny_shards, tmp_path) -> str:
    """A copy of the shards in which one clip's frames are no JPEG files; hashes are right. Returns its clip_id."""
    clips = StreamingDataset(local=str(tiny_shards), batch_size=1)
    with MDSWriter(out=str(tmp_path / "shards"), columns=MDS_COLUMNS, hashes=["xxh3_64"]) as writer:
        for number in range(clips.num_samples):
            sample = dict(clips[number])
            if number == 5:
                damaged = sample["clip_id"]
                sample["frames"] = bytes(len(sample["frames"]))
            writer.write(sample)
    shutil.copy(tiny_shards / "manifest.json", tmp_path / "shards" / "manifest.json")
    return damaged


def run_file(folder: Path, *, workers: int, allowed: float) -> str:
    (folder / "run.yaml").write_text(RUN.format(folder=folder, workers=workers, allowed=allowed))
    return str(folder / "run.yaml")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_counted_named_and_bounded(workers, damaged_shards, tmp_path):
    finished = launch(1, PRETRAIN, run_file(tmp_path, workers=workers, allowed=0.1), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count(f"bad clip: clip '{damaged_shards}'") == 3  # once in each of three epochs
    assert read_curves(tmp_path / "run")["data/bad_clips"] == {3: 1.0, 6: 2.0, 9: 3.0}


def test_more_damage_than_allowed_ends_the_run_in_one_sentence(damaged_shards, tmp_path):
    finished = launch(1, PRETRAIN, run_file(tmp_path, workers=1, allowed=0.01), scratch=tmp_path)

    assert finished.returncode == 2
    assert (
        "pretrain: error: rank 0: 2 of 48 clips could not be decoded, data.max_bad_share allows 1.0%" in finished.stdout
    )
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_gone_ends_the_run_and_not_just_the_epoch(workers, tiny_shards, tmp_path):
    """On two ranks, so that workers wait for each other's fetches."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    next((tmp_path / "shards").rglob("*.mds")).unlink()

    finished = launch(2, PRETRAIN, run_file(tmp_path, workers=workers, allowed=1.0), scratch=tmp_path, seconds=120)

    assert finished.returncode == 2, finished.stdout
    said = next(line for line in finished.stdout.splitlines() if "pretrain: error: rank" in line)
    assert "'part-00000/shard.00000.mds'" in said and str(tmp_path / "shards") in said
    assert "Traceback" not in finished.stdout

"""DESIGN 2.4: a clip or shard that cannot be used is counted and named, and too many of them end the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.monitor.log import read_log
from tests.data.small_shards import small_shards
from tests.ranks import PRETRAIN, fork_ranks, launch

pytestmark = pytest.mark.slow

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
def damaged_clip(tiny_shards, tmp_path) -> str:
    """A copy of the shards in which one clip's frames are no JPEG files; hashes are right. Returns its clip_id."""
    damaged = []

    def no_frames(number: int, record: dict) -> None:
        if number == 5:
            damaged.append(record["clip_id"])
            record["frames"] = bytes(len(record["frames"]))

    small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=24, change=no_frames)
    return damaged[0]


@pytest.fixture
def damaged_shard(tiny_shards, tmp_path) -> str:
    """A copy of the clips in 8 shards, of which one holds a flipped byte. Returns its name."""
    small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=3)
    path = tmp_path / "shards" / "shard.00002.mds"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def run_file(folder: Path, *, workers: int, allowed: float) -> str:
    (folder / "run.yaml").write_text(RUN.format(folder=folder, workers=workers, allowed=allowed))
    return str(folder / "run.yaml")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_counted_named_and_bounded(workers, damaged_clip, tmp_path):
    finished = fork_ranks(1, PRETRAIN, run_file(tmp_path, workers=workers, allowed=0.1), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count(f"bad clip: clip '{damaged_clip}'") == 3  # another frame in each epoch
    curves = read_curves(tmp_path / "run")
    assert curves["data/bad_clips"] == {3: 1.0, 6: 2.0, 9: 3.0}  # once in each of three epochs
    assert curves["data/bad/frame"] == curves["data/bad_clips"]  # and that is all there is
    told = [entry["line"] for entry in read_log(tmp_path / "run") if entry.get("event") == "bad clip"]
    assert len(told) == 3 and all(damaged_clip in line for line in told)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named_once_and_its_clips_are_counted_to_the_end_of_every_epoch(
    workers, damaged_shard, tmp_path
):
    finished = fork_ranks(1, PRETRAIN, run_file(tmp_path, workers=workers, allowed=0.2), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count(f"bad clip: shard '{damaged_shard}'") == 1
    curves = read_curves(tmp_path / "run")
    assert curves["data/bad_clips"] == curves["data/bad/shard"] == {3: 3.0, 6: 6.0, 9: 9.0}


def test_more_damage_than_allowed_ends_the_run_in_one_sentence(damaged_clip, tmp_path):
    finished = launch(1, PRETRAIN, run_file(tmp_path, workers=1, allowed=0.01), scratch=tmp_path)

    assert finished.returncode == 2
    assert (
        "pretrain: error: rank 0: 2 of 48 clips (4.2%) could not be decoded, data.max_bad_share allows 1.0%"
        in finished.stdout
    )
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_ends_the_run_where_that_was_asked_for(workers, damaged_shard, tmp_path):
    file = run_file(tmp_path, workers=workers, allowed=1.0)

    finished = fork_ranks(1, PRETRAIN, file, "data.on_bad_clip=fail", scratch=tmp_path, seconds=120)

    assert finished.returncode == 2, finished.stdout
    said = next(line for line in finished.stdout.splitlines() if "pretrain: error: rank" in line)
    assert f"'{damaged_shard}' of '{tmp_path / 'shards'}' is damaged" in said and "data.on_bad_clip" in said
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_gone_ends_the_run_and_not_just_the_epoch(workers, tiny_shards, tmp_path):
    """On two ranks, so that workers wait for each other's fetches."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    next((tmp_path / "shards").rglob("*.mds")).unlink()

    finished = fork_ranks(2, PRETRAIN, run_file(tmp_path, workers=workers, allowed=1.0), scratch=tmp_path, seconds=120)

    assert finished.returncode == 2, finished.stdout
    said = next(line for line in finished.stdout.splitlines() if "pretrain: error: rank" in line)
    assert "'part-00000/shard.00000.mds'" in said and str(tmp_path / "shards") in said
    assert "Traceback" not in finished.stdout


def test_an_index_that_points_outside_its_folder_is_refused(tiny_shards, tmp_path):
    small_shards(tiny_shards, tmp_path / "shards", range(24), shard_clips=24)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../outside.mds"
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))

    finished = fork_ranks(1, PRETRAIN, run_file(tmp_path, workers=1, allowed=1.0), scratch=tmp_path)

    assert finished.returncode == 2 and "'../outside.mds'" in finished.stdout
    assert "Traceback" not in finished.stdout

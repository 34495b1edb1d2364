"""A run that is started again with other settings: refused, or changed where its run file allows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cavmae_ds.monitor.log import read_log
from cavmae_ds.tasks import load_run, validate_run
from cavmae_ds.tasks.pretrain.task import Pretraining
from tests.data.small_shards import small_shards
from tests.ranks import PRETRAIN, fork_ranks

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero1.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 0}}
train: {{global_batch: 4, micro_batch: 4, steps: 2, precision: fp32}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 0}}
"""


def texts(run_dir: Path, tag: str) -> list[tuple[int, str]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(f"{tag}/text_summary")]


@pytest.mark.slow
def test_another_value_is_refused_or_allowed_once_and_the_run_folder_says_so(tiny_shards, tmp_path):
    run_dir, run_file = tmp_path / "run", tmp_path / "run.yaml"
    run_file.write_text(RUN.format(folder=tmp_path, shards=tiny_shards))

    def start(*overrides: str) -> tuple[int, str]:
        ended = fork_ranks(1, PRETRAIN, str(run_file), *overrides, scratch=tmp_path)
        return ended.returncode, ended.stdout

    assert start()[0] == 0
    kept = (run_dir / "config.yaml").read_bytes(), (run_dir / "log.jsonl").read_bytes()

    code, printed = start("mask.audio_ratio=0.9", "data.shuffle=false", "train.steps=4")

    assert code == 2 and "Traceback" not in printed
    assert "(data.shuffle was true, now false, mask.audio_ratio was 0.75, now 0.9); restore it" in printed
    assert kept == ((run_dir / "config.yaml").read_bytes(), (run_dir / "log.jsonl").read_bytes())

    moved = tmp_path / "moved"
    shutil.copytree(tiny_shards, moved)
    allowed = ("resume.allow=[mask.audio_ratio]", "train.steps=4", f"data.train={moved}")
    code, printed = start("mask.audio_ratio=0.9", *allowed)

    assert code == 0, printed
    assert "mask.audio_ratio was 0.75, now 0.9 from step 2 on, as resume.allow says" in printed
    changed = {entry["key"]: entry for entry in read_log(run_dir) if entry.get("event") == "setting changed"}
    assert changed.keys() == {"mask.audio_ratio", "data.train", "train.steps"}
    mask = changed["mask.audio_ratio"]
    assert (mask["step"], mask["was"], mask["now"], mask["allowed_by"]) == (2, 0.75, 0.9, "resume.allow")
    assert "allowed_by" not in changed["train.steps"]
    ((step, text),) = texts(run_dir, "run/changed_settings")
    assert step == 2 and "mask.audio_ratio was 0.75, now 0.9\n" in text
    assert (run_dir / "config-until-step-00000002.yaml").read_bytes() == kept[0]
    assert load_run(run_dir / "config.yaml", "pretrain").mask.audio_ratio == 0.9

    code, printed = start("mask.audio_ratio=0.5", *allowed)

    assert code == 2
    assert "mask.audio_ratio was 0.9, now 0.5" in printed and "resume.allow: [mask.audio_ratio=0.5]" in printed


def test_a_fingerprint_is_of_the_clips_and_their_shards_not_of_the_address(tiny_shards, tmp_path):
    def fingerprints(*folders: Path) -> tuple[str, ...]:
        sizes = {"image_size": 64, "audio_frames": 112}
        train = {"global_batch": 4, "micro_batch": 4, "steps": 2}
        data = {"sources": [{"remote": str(folder)} for folder in folders]}
        return Pretraining.resolve(validate_run({"model": sizes, "data": data, "train": train}), 1).fingerprints

    copy = shutil.copytree(tiny_shards, tmp_path / "copy")
    made = (("a", range(8), 4), ("other clips", range(8, 16), 4), ("same clips in other shards", range(8), 2))
    a, *others = (small_shards(tiny_shards, tmp_path / name, clips, shard_clips=n) for name, clips, n in made)
    assert fingerprints(tiny_shards) == fingerprints(copy)
    together = fingerprints(a, *others)
    assert len({*together}) == 3 and together[0] == fingerprints(a)[0]

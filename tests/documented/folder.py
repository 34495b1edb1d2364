"""A folder in which every documented command finds what it names: videos, shards, runs, files of weights, all tiny."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import torch

from cavmae_ds.data.official.exporting import LABEL_CSV, LISTING
from cavmae_ds.tasks import load_run
from tests.documented.commands import documented_commands, documented_files
from tests.ranks import CHECKOUT, PRETRAIN, fork_cavmae, fork_ranks
from tests.weights.small_models import small_mae

MODEL = """\
model:
  {embed_dim: 64, num_heads: 1, modality_specific_depth: 1, shared_depth: 1, decoder_embed_dim: 64, decoder_depth: 1,
  decoder_num_heads: 1}
"""
"""One head for each 64 of the width, as a file that says nothing of its heads is read; other sizes are the defaults."""
PRETRAINING = f"""\
run_dir: runs/base
{MODEL}
data: {{train: shards/train, workers: 1}}
optim: {{warmup_clips: 0}}
train: {{global_batch: 1024, micro_batch: 2, steps: 2, precision: fp32, ema_clips: 100}}
checkpoint: {{every_steps: 1}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 0}}
"""
FINETUNING = f"""\
run_dir: runs/as20k
{MODEL}
data: {{train: shards/train, validation: shards/eval, workers: 1}}
init: {{from_checkpoint: runs/base}}
classifier: {{}}
average: {{from_epoch: 1, to_epoch: 2}}
optim: {{name: adam, learning_rate: 1e-3}}
train: {{global_batch: 4, micro_batch: 1, epochs: 2, precision: fp32}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 0}}
"""
SAME_SHARDS = (
    "eval", "test", "mine", "as2m", "as20k", "as-eval", "as-retrieval", "vggsound", "vggsound-test",
    "vggsound-retrieval",
)  # fmt: skip
PRETRAINED = ("quickstart", "mine", "other", "a", "b", "nonorm", "official/as2m-scale+", "official/as2m-scale++")
FINETUNED = ("vggsound", "official/finetune-as20k")


def make(folder: Path) -> None:
    """Everything but what is in a bucket. Prepares, trains and exports for real: about 20 seconds."""
    _checkout(folder)
    _videos(folder)
    (folder / "RUN.yaml").write_text(PRETRAINING)
    (folder / "FINETUNE.yaml").write_text(FINETUNING)
    for name, content in documented_files().items():
        (folder / name).write_text(content)
    for written in (one.line for one in documented_commands() if one.line.startswith("cat > ")):
        subprocess.run(["bash", "-euc", written], cwd=folder, check=True)
    _run("prepare", "videos.csv", "--classes", "classes.txt", "--out", "shards/train", cwd=folder)
    for name in SAME_SHARDS:
        (folder / "shards" / name).symlink_to("train")
    _train(folder, PRETRAIN, "RUN.yaml", "train.global_batch=2")
    _train(folder, CHECKOUT / "launch" / "finetune.py", "FINETUNE.yaml", "train.global_batch=2")
    for names, original in ((PRETRAINED, "base"), (FINETUNED, "as20k")):
        for name in names:
            shutil.copytree(folder / "runs" / original, folder / "runs" / name)
    (folder / "RUN_DIR").symlink_to("runs/base")
    (folder / "quickstart" / "shards").mkdir(parents=True)
    for split in ("train", "eval"):
        (folder / "quickstart" / "shards" / split).symlink_to("../../shards/train")
    (folder / "quickstart" / "run").symlink_to("../runs/base")
    _weights(folder)
    _official(folder)


def newest_step(folder: Path) -> str:
    """The name of the newest checkpoint of runs/base."""
    return max(path.name for path in (folder / "runs/base/checkpoints").iterdir())


def _checkout(folder: Path) -> None:
    """What a checkout has and commands name; launch/ is a folder of this one, for launch/hostfile is written there."""
    (folder / "launch").mkdir()
    for path in (CHECKOUT / "launch").iterdir():
        (folder / "launch" / path.name).symlink_to(path)
    for name in ("ds_configs", "benchmarks", "cavmae_ds", "kernels", "tests"):
        (folder / name).symlink_to(CHECKOUT / name)


def _videos(folder: Path) -> None:
    made = "--clips", "2", "--classes", "2", "--seconds", "1.2", "--size", "64", "--eval-share", "0"
    _run("synthesize", "--out", "made", *made, "--workers", "1", cwd=folder)
    made = folder / "made"
    (folder / "classes.txt").write_bytes((made / "classes.txt").read_bytes())
    clips = (made / "train.csv").read_text().splitlines()
    listing = "\n".join([clips[0], *(f"made/{line}" for line in clips[1:])])
    for name in ("videos.csv", "train.csv", "vgg_train.csv"):
        (folder / name).write_text(listing)
    videos = sorted(made.rglob("*.mp4"))
    for name in ("videos", "MY_VIDEOS", "more"):
        (folder / name).mkdir()
        for video in videos:
            (folder / name / video.name).symlink_to(video)
    for name in ("more/clip.mp4", "clip.mp4"):
        (folder / name).symlink_to(videos[0])


def _weights(folder: Path) -> None:
    _run("export", "runs/base", "--out", "cav-mae-base.pth", cwd=folder)
    for name in ("cav-mae-nonorm.pth", "cav-mae-scale+.pth", "cav-mae-scale++.pth"):
        (folder / name).symlink_to("cav-mae-base.pth")
    _run("export", "runs/as20k", "--out", "as-20k-released.pth", cwd=folder)
    sizes = load_run(folder / "RUN.yaml", "pretrain").model
    torch.save({"model": small_mae(sizes)}, folder / "mae_pretrain_vit_base_full.pth")


def _official(folder: Path) -> None:
    """Lists in the official layout, of the clips in shards/train."""
    _run("create-official", "shards/train", "--out", "exported", cwd=folder)
    content = json.loads((folder / "exported" / LISTING).read_text())
    for clip in content["data"]:
        for key in ("wav", "video_path"):
            clip[key] = str(folder / clip[key])
    for name in ("train", "audioset_2m", "audioset_20k", "audioset_eval", "vgg_train", "vgg_test"):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name in ("class_labels.csv", "class_labels_indices.csv", "vgg_labels_indices.csv"):
        shutil.copy(folder / "exported" / LABEL_CSV, folder / name)


def _train(folder: Path, script: Path, *words: str) -> None:
    finished = fork_ranks(1, script, *words, scratch=folder, cwd=folder)
    assert finished.returncode == 0, finished.stdout


def _run(*words: str, cwd: Path) -> None:
    finished = fork_cavmae(*words, cwd=cwd)
    assert finished.returncode == 0, finished.stdout + finished.stderr

"""Spoken and handwritten digits: what a small model learns from scratch: python -m benchmarks.digits, some 40 minutes.

Makes the data set (real recordings and handwriting; who speaks is the ink's colour, which digit is the shape), imports
it, pretrains, and follows on clips never seen: retrieval by speaker and by digit, both directions, checkpoint by
checkpoint, and a linear probe of the digit against one of the same model untrained. Writes
benchmarks/results/digits-<ink>-<date>.json and a figure, and prints the tables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml
from torch import Tensor

from benchmarks.digits_report import floors, tables, write_figure
from benchmarks.report import commit_of
from benchmarks.turns import machine

CHECKOUT = Path(__file__).parents[1]
MAKER = CHECKOUT / ".." / "shared" / "tools" / "make_digits.py"
IMAGE_SIZE, AUDIO_FRAMES = 64, 64  # 95 % of the recordings are shorter than 0.65 s
FACTORS = {"digit": range(10), "speaker": range(10, 16)}  # class ids, in the order of class_labels.csv
STEPS_PER_MINUTE = 100
"""Of pretraining on two CPU cores: what --minutes is turned into, so that a budget means the same work anywhere."""
CHECKPOINTS = 12
"""Points of the retrieval curves, beside the start."""
Ink = Literal["speaker", "random"]


@dataclass(frozen=True)
class Digits:
    """The data set, as shards, and the statistics of its sounds."""

    train: str
    test: str
    audio_mean: float
    audio_std: float


def prepare(folder: Path, ink: Ink, seed: int, limit: int, maker: Path) -> Digits:
    """Make and import both splits; what is there stays. limit: at most so many clips a split, 0 for all."""
    from cavmae_ds.data.official import import_official
    from cavmae_ds.data.records import Records
    from cavmae_ds.data.settings import BuildSettings
    from cavmae_ds.data.statistics import clip_sums

    made, shards = folder / "made", folder / "shards"
    if not (made / "class_labels.csv").is_file():  # written last
        options = {"size": IMAGE_SIZE, "limit": limit, "ink": ink, "seed": seed}
        command([sys.executable, maker, made, *(f"--{key}={value}" for key, value in options.items())])
    settings = BuildSettings(frame_size=IMAGE_SIZE)
    for split in ("train", "test"):
        label_csv, workers = made / "class_labels.csv", len(os.sched_getaffinity(0))
        import_official(made / f"{split}.json", str(shards / split), settings, label_csv=label_csv, workers=workers)
    records = Records(str(shards / "train"))
    found = clip_sums(records, range(len(records)), torch.device("cpu")).statistics().every_frame
    return Digits(str(shards / "train"), str(shards / "test"), found.mean, found.std)


def recipe(digits: Digits, steps: int, seed: int, ranks: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The run file of pretraining. Batches hold several clips of each digit and speaker; see floors."""
    sections: dict[str, Any] = {
        "model": {
            "embed_dim": 96, "num_heads": 4, "modality_specific_depth": 2, "shared_depth": 1,
            "decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 4,
            "image_size": IMAGE_SIZE, "audio_frames": AUDIO_FRAMES,
        },
        "mask": {"audio_ratio": 0.5, "image_ratio": 0.25},
        "loss": {"mae_weight": 0.1, "contrastive_weight": 1.0, "normalise_pixels": False},
        "contrastive": {"temperature": 0.1, "direction": "both"},
        "data": {
            "train": digits.train, "validation": digits.test,
            "audio_mean": digits.audio_mean, "audio_std": digits.audio_std,
        },
        "optim": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.01},
        "train": {
            "global_batch": 108, "steps": steps, "seed": seed, "precision": "fp32",
        },
        "checkpoint": {"every_steps": max(1, steps // CHECKPOINTS), "keep_last": CHECKPOINTS + 1},
        "monitor": {"log_every": max(1, steps // 100), "pictures_every": 0},
    }  # fmt: skip
    for key, value in overrides.items():
        section, name = key.split(".")
        sections[section][name] = value
    batch = sections["train"]["global_batch"]
    sections["train"]["micro_batch"] = batch // ranks
    sections["optim"]["warmup_clips"] = min(20, steps // 10) * batch
    return sections


def pretrain(run_dir: Path, sections: Mapping[str, Any], ranks: int) -> float:
    """Train to the end, or on from where it stopped; seconds it took."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"run_dir": str(run_dir), **sections}, sort_keys=False))
    script = CHECKOUT / "launch" / "pretrain.py"
    launcher = ["deepspeed", "--log_level", "error", "--num_gpus", ranks] if ranks > 1 else [sys.executable]
    started = time.perf_counter()
    command([*launcher, script, path])
    return time.perf_counter() - started


@dataclass(frozen=True)
class Clips:
    """What the model makes of every clip of a split, nothing hidden, middle frame; row = clip."""

    audio: Tensor  # [N, D] pooled
    image: Tensor  # [N, D]
    labels: list[list[int]]

    def of(self, factor: str) -> list[list[int]]:
        """Each clip's classes of one factor."""
        return [[label for label in clip if label in FACTORS[factor]] for clip in self.labels]

    def views(self) -> dict[str, Tensor]:
        """What a probe may see: [N, D] or [N, 2 D]."""
        return {"audio": self.audio, "image": self.image, "both": torch.cat([self.audio, self.image], 1)}


def look(pretrained: Any, shards: str) -> Clips:
    """Features of every clip of the shards."""
    from cavmae_ds.evaluate.pretrained import evaluation_batches, pooled_features

    labels: list[list[int]] = []
    pooled = []
    for batch in evaluation_batches(pretrained, shards, batch_size=100):
        pooled.append(pooled_features(pretrained, batch))
        labels += [list(map(int, clip)) for clip in batch.labels]
    audio, image = (torch.cat(side).cpu() for side in zip(*pooled, strict=True))
    return Clips(audio, image, labels)


def retrieval(clips: Clips) -> dict[str, dict[str, float]]:
    """Share of first hits that share the query's digit, or speaker, in both directions, and what guessing scores."""
    from cavmae_ds.evaluate.retrieval import retrieval_scores

    found = {}
    for factor in FACTORS:
        scores = retrieval_scores(clips.audio, clips.image, clips.of(factor))
        found[factor] = {
            "audio_to_image": scores.audio_to_image.class_precision_at_1,
            "image_to_audio": scores.image_to_audio.class_precision_at_1,
            "chance": scores.chance_class_precision_at_1,
        }
    return found


def probes(train: Clips, test: Clips) -> dict[str, dict[str, float]]:
    """Held-out accuracy of a logistic regression on standardised features, by factor and view."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found: dict[str, dict[str, float]] = {}
    for factor in FACTORS:
        known, asked = ([clip[0] for clip in clips.of(factor)] for clips in (train, test))
        found[factor] = {}
        for view, rows in train.views().items():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
            found[factor][view] = probe.fit(rows.numpy(), known).score(test.views()[view].numpy(), asked)
    return found


def follow(run_dir: Path, digits: Digits) -> dict[str, Any]:
    """Retrieval at the start and at every checkpoint, probes at the start and at the end, curves of the losses."""
    from cavmae_ds.checkpoint import whole_checkpoints
    from cavmae_ds.checkpoint.folder import read_manifest
    from cavmae_ds.checkpoint.weights import assemble
    from cavmae_ds.evaluate.curves import read_curves
    from cavmae_ds.evaluate.pretrained import load_pretrained
    from cavmae_ds.model.cavmae import CAVMAE

    pretrained = load_pretrained(run_dir)
    torch.manual_seed(pretrained.cfg.train.seed)  # as the run did
    at_first = replace(pretrained, model=CAVMAE(pretrained.cfg.model, pretrained.model.normalisation))
    untrained = look(at_first, digits.train), look(at_first, digits.test)
    points = [{"step": 0, **retrieval(untrained[1])}]
    for folder in whole_checkpoints(run_dir):
        manifest = read_manifest(folder)
        pretrained.model.load_state_dict(assemble(folder, manifest))
        test = look(pretrained, digits.test)
        points.append({"step": manifest.step, **retrieval(test)})
    return {
        "retrieval": points,
        "probes": {"untrained": probes(*untrained), "pretrained": probes(look(pretrained, digits.train), test)},
        "curves": {tag: curve for tag, curve in read_curves(run_dir).items() if "loss/" in tag},
    }


def command(words: Sequence[Any]) -> None:
    """Run it, one thread a process; its output goes to stderr, for stdout is for the tables."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        list(map(str, words)), check=True, cwd=CHECKOUT, env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        stdout=sys.stderr,
    )  # fmt: skip


def main(
    minutes: Annotated[float, typer.Option(help="Pretraining, in minutes of two quiet CPU cores.")] = 30.0,
    ink: Annotated[Ink, typer.Option(help="What its colour tells: who speaks, or nothing.")] = "speaker",
    seeds: Annotated[str, typer.Option(help="Of data, weights and masks; commas between runs.")] = "0",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    limit: Annotated[int, typer.Option(help="At most so many clips a split; 0: all.")] = 0,
    out: Annotated[Path, typer.Option(help="Data and runs; what is finished there is kept.")] = Path("digits"),
    results: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = CHECKOUT / "benchmarks" / "results",
    figures: Annotated[Path, typer.Option(help="Folder of the figure.")] = CHECKOUT / "docs" / "images",
    maker: Annotated[Path, typer.Option(help="The script that makes the data set.")] = MAKER,
    setting: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Another value in the run file. Repeatable.")
    ] = [],  # noqa: B006  typer reads it and never changes it
) -> None:
    """Make the digits, pretrain, measure, write."""
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not on_gpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    ranks = 1 if on_gpu else min(2, len(os.sched_getaffinity(0)))
    torch.set_num_threads(1)
    overrides = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in setting)}
    runs = []
    for seed in map(int, seeds.split(",")):
        folder = (out / f"{ink}-{seed}").resolve()
        digits = prepare(folder, ink, seed, limit, maker)
        sections = recipe(digits, max(1, round(minutes * STEPS_PER_MINUTE)), seed, ranks, overrides)
        seconds = pretrain(folder / "run", sections, ranks)
        runs.append({"seed": seed, "seconds": seconds, "settings": sections, **follow(folder / "run", digits)})
    document = {
        "commit": commit_of(CHECKOUT), **machine(), "torch": torch.__version__, "ranks": ranks,
        "ink": ink, "minutes": minutes, "floors": floors(runs[0]["settings"]["train"]["global_batch"]), "runs": runs,
    }  # fmt: skip
    name = f"digits-{ink}-{date.today().isoformat()}"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    figures.mkdir(parents=True, exist_ok=True)
    write_figure(document, figures / f"digits-{ink}.png")
    typer.echo(tables(document))


if __name__ == "__main__":
    typer.run(main)

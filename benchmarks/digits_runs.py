"""The trainings of the digits benchmark: their run files, and the real programs that they are given to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.turns import cpu_seconds
from cavmae_ds.models.cavmae.config import Mode

CHECKOUT = Path(__file__).parents[1]
CHECKPOINTS = 16
"""Points of the retrieval curves, beside the start."""
EVALUATIONS = 12
"""Points of a finetuning's curve, about."""
MODES: tuple[Mode, ...] = ("multimodal", "audioonly", "videoonly")
Sections = dict[str, dict[str, Any]]

MODEL = {
    "embed_dim": 64, "num_heads": 4, "modality_specific_depth": 2, "shared_depth": 1,
    "decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 4,
    "patch_size": 8, "image_size": 64, "audio_frames": 64,  # 95 % of the recordings are shorter than 0.65 s
}  # fmt: skip


def pretraining(data: Mapping[str, Any], steps: int, seed: int) -> Sections:
    """Sections of the run file that leads to digits being retrieved; docs/results.md tells how it was found."""
    return {
        "model": dict(MODEL),
        "mask": {"audio_ratio": 0.75, "image_ratio": 0.1},
        "loss": {"mae_weight": 0.0, "contrastive_weight": 1.0},
        "contrastive": {"temperature": 0.07, "direction": "both"},
        "data": {**data, "workers": 1},
        "optim": {
            "learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.05, "schedule": "step",
            "decay_start_epoch": max(1, steps * 3 // 100), "decay_every_epochs": max(1, steps // 300),
        },
        "train": {"global_batch": 108, "steps": steps, "seed": seed, "precision": "fp32"},
        "checkpoint": {"every_steps": max(1, steps // CHECKPOINTS), "keep_last": CHECKPOINTS + 1},
        "monitor": {"log_every": max(1, steps // 100), "pictures_every": 0, "norms_every": 0},
    }  # fmt: skip


def finetuning(pretrained: Path, data: Mapping[str, Any], mode: Mode, epochs: int, seed: int) -> Sections:
    """Sections of the run file of a classifier of the digit; those of the modes differ in nothing but the mode."""
    return {
        "init": {"from_checkpoint": str(pretrained)},
        "model": dict(MODEL),
        "data": {**data, "workers": 1},
        "classifier": {"mode": mode, "head_lr_ratio": 1.0},
        "augment": {"mixup": 0.0, "freqm": 0, "timem": 0, "noise": False},
        "loss": {"kind": "ce", "label_smoothing": 0.1},
        "evaluate": {"metric": "accuracy", "batch": 50, "every_epochs": max(1, epochs // EVALUATIONS)},
        "optim": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.05},
        "train": {"global_batch": 108, "epochs": epochs, "seed": seed, "precision": "fp32"},
        "checkpoint": {"every_steps": 100_000},
        "monitor": {"log_every": 5, "pictures_every": 0, "norms_every": 0},
    }  # fmt: skip


def changed(sections: Sections, overrides: Mapping[str, Any]) -> Sections:
    """With other values, given as section.key."""
    sections = {name: dict(section) for name, section in sections.items()}
    for key, value in overrides.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return sections


def without_addresses(sections: Sections) -> Sections:
    """What is worth keeping of a run file on another machine."""
    data = {key: value for key, value in sections["data"].items() if key not in ("train", "validation")}
    return {name: section for name, section in sections.items() if name != "init"} | {"data": data}


def train(program: str, run_dir: Path, sections: Sections, ranks: int) -> dict[str, float]:
    """Run launch/<program>.py to the end, or on from where it stopped; the seconds it took in all, noted beside it.

    A run that has ended with the same sections is not started again.
    """
    batch, steps = (sections["train"].get(key, 0) for key in ("global_batch", "steps"))
    sections["train"]["micro_batch"] = batch // ranks
    sections["optim"]["warmup_clips"] = min(50, steps // 10) * batch
    path, note = run_dir.with_suffix(".yaml"), run_dir.with_suffix(".json")
    asked = yaml.safe_dump({"run_dir": str(run_dir), **sections}, sort_keys=False)
    spent: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {"wall_s": 0, "cpu_s": 0, "ended": ""}
    if spent["ended"] != asked:
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(asked)
        launcher = ["deepspeed", "--log_level", "error", "--num_gpus", ranks] if ranks > 1 else [sys.executable]
        wall_s, cpu_s = time.perf_counter(), cpu_seconds()
        try:
            command([*launcher, CHECKOUT / "launch" / f"{program}.py", path])
            spent["ended"] = asked
        finally:
            spent["wall_s"] += round(time.perf_counter() - wall_s)
            spent["cpu_s"] += round(cpu_seconds() - cpu_s)
            note.write_text(json.dumps(spent))
    return {key: spent[key] for key in ("wall_s", "cpu_s")}


def command(words: Sequence[Any]) -> None:
    """Run it, one thread a process; its output goes to stderr, for stdout is for the tables."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        list(map(str, words)), check=True, cwd=CHECKOUT, env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        stdout=sys.stderr,
    )  # fmt: skip

"""What saving costs a training step on a CPU: `python -m benchmarks.saving`, some minutes.

Steps alone and steps during a save take turns in one process, so their ratio holds where a machine's speed drifts. One
thread computes; the save has a second core, as it has beside a GPU. Writes benchmarks/results/saving-<date>.json.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import save_file

from benchmarks.report import commit_of
from benchmarks.turns import machine, take_turns

CHECKOUT = Path(__file__).parents[1]
MODELS = {
    "small": {
        "embed_dim": 192, "num_heads": 3, "modality_specific_depth": 3, "shared_depth": 1,
        "decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 4,
    },
    "base": {},
}  # fmt: skip
"""base: the recipe's, 16 bytes a parameter: fp32 weight, two moments, running mean."""
CLIPS = 2


def saving(model: str, rounds: int, folder: Path) -> dict[str, Any]:
    """One model on one rank, ZeRO 2, bf16 or fp32 makes no difference to what is saved."""
    from cavmae_ds.atomic_io import flush
    from cavmae_ds.checkpoint.engine_state import EngineState
    from cavmae_ds.checkpoint.folder import file_hash
    from cavmae_ds.checkpoint.manifest import Manifest
    from cavmae_ds.checkpoint.retention import Retention
    from cavmae_ds.checkpoint.shared_dir import find_disk
    from cavmae_ds.checkpoint.writer import Writer
    from cavmae_ds.distributed.process_group import close_world, open_world
    from cavmae_ds.training.ema import WeightAverage

    world = open_world()
    engine, train = _training(MODELS[model], world)
    state = EngineState(engine, [WeightAverage(engine, world, 1000, CLIPS)], world)
    train()  # the moments are made by the first step
    writer = Writer(find_disk(folder / "checkpoints", world), world, Retention(last=1))
    saves = 0

    def begin() -> None:
        nonlocal saves
        saves += 1
        writer.begin(saves, state.pieces(), Manifest(step=saves, clips_seen=0, ranks=1, zero_stage=2))

    def save() -> None:
        begin()
        writer.wait()

    file, pieces = folder / "file", state.pieces()
    parts = take_turns(
        {
            "host copy": state.pieces,
            "write": lambda: save_file({piece.key: piece.values for piece in pieces}, file),
            "flush": lambda: flush(file),
            "hash": lambda: file_hash(file),
            "whole save": save,
            "step": train,
        },
        rounds,
    )
    steps = math.ceil(parts["whole save"].wall_s / parts["step"].wall_s)

    def several() -> None:
        for _ in range(steps):
            train()

    def several_during_a_save() -> None:
        begin()
        several()

    turns = take_turns({"alone": several, "during": several_during_a_save, "rest of the save": writer.wait}, rounds)
    size = file.stat().st_size
    assert all(not outcome.failure for outcome in writer.finished())
    writer.close()
    close_world()
    return {
        "model": model,
        "bytes": size,
        "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
        "seconds": {name: asdict(spent) for name, spent in parts.items()},
        "write_mb_per_s": size / 1e6 / parts["write"].wall_s,
        "hash_mb_per_cpu_s": size / 1e6 / parts["hash"].cpu_s,
        "steps_during_a_save": steps,
        "step_time_ratio": turns["during"].wall_s / turns["alone"].wall_s,
        "seconds_lost_by_a_save": turns["during"].wall_s - turns["alone"].wall_s,
    }


def _training(model: dict[str, int], world: Any) -> tuple[Any, Callable[[], None]]:
    """A DeepSpeed engine, and an optimizer step of it on noise."""
    from cavmae_ds.models.cavmae.masking import draw_plans
    from cavmae_ds.models.cavmae.model import CAVMAE
    from cavmae_ds.tasks import validate_run
    from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses, reconstruction_loss
    from cavmae_ds.tasks.pretrain.plan import PretrainPlan
    from cavmae_ds.tasks.pretrain.task import Pretraining
    from cavmae_ds.training.engine import build_engine

    train = {"global_batch": CLIPS, "micro_batch": CLIPS, "steps": 10, "precision": "fp32"}
    cfg = validate_run({"ds_config": "ds_configs/zero2.json", "model": model, "train": train})
    known = {"accumulation": 1, "total_steps": 10, "steps_per_epoch": 10}
    numbers = PretrainPlan(**({field.name: 0 for field in fields(PretrainPlan)} | known))  # type: ignore[arg-type]
    engine = build_engine(Pretraining(cfg, numbers), CAVMAE(cfg.model), world)
    plans = draw_plans(cfg.model, cfg.mask, 0, 0, torch.arange(CLIPS))
    audio, images = torch.randn(CLIPS, 1024, 128), torch.randint(0, 255, (CLIPS, 3, 224, 224), dtype=torch.uint8)

    def step() -> None:
        output = engine(audio, images, plans, decoder_loss=lambda output: reconstruction_loss(output, cfg.loss))
        engine.backward(pretrain_losses(output, contrast_within(output, cfg.contrastive), cfg.loss).total)
        engine.step()

    return engine, step


def main(one: str = "", rounds: int = 5) -> None:
    """Measure all models, each in a fresh process, show it and write it."""
    torch.set_num_threads(1)
    if one:
        with tempfile.TemporaryDirectory(prefix="saving-") as folder:
            typer.echo(json.dumps(saving(one, rounds, Path(folder))))
        return
    rows = []
    for model in MODELS:
        command = [sys.executable, "-m", "benchmarks.saving", "--one", model, "--rounds", str(rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    found = {**machine(), "torch": torch.__version__, "commit": commit_of(CHECKOUT), "rows": rows}
    path = CHECKOUT / "benchmarks" / "results" / f"saving-{date.today().isoformat()}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    typer.echo(path.read_text())


if __name__ == "__main__":
    typer.run(main)

"""What a large batch takes on a CPU: peak memory and time of its parts, each measured in a fresh process.

`python -m benchmarks.memory` writes benchmarks/results/memory-<date>.json, about ten minutes;
`python -m benchmarks.memory --record 16384` takes one optimizer step on that many clips, all compared with all.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import date
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch
import typer

RANKS = 8
"""Of the gathered comparison: one rank's N / 8 queries among N candidates."""
WIDTH = 64
BASE_IN_SMALL = {
    "embed_dim": 96, "num_heads": 4, "modality_specific_depth": 3, "shared_depth": 1,
    "decoder_embed_dim": 64, "decoder_depth": 8, "decoder_num_heads": 4,
}  # fmt: skip
"""The base model's tokens and depth of decoder, an eighth of its width."""
TINY = {
    "embed_dim": 64, "num_heads": 4, "modality_specific_depth": 1, "shared_depth": 1,
    "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "image_size": 64, "audio_frames": 64,
}  # fmt: skip


def peak_above_now(work: Callable[[], Any]) -> int:
    """Bytes by which resident memory rose at most during the work. Linux: its high-water mark, set back before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def contrastive(candidates: int, ranks: int = RANKS, both: bool = False) -> dict[str, float]:
    """Loss and gradients of one rank's queries among all candidates; the gather itself is left out."""
    from cavmae_ds.kernels.contrastive import Here, contrastive_among

    queries, others = (torch.nn.functional.normalize(torch.randn(n, WIDTH)) for n in (candidates // ranks, candidates))
    sides = queries.requires_grad_(), others.requires_grad_()

    def compare() -> None:
        contrastive_among(*sides, Here(others, 0), 0.05, both).loss.backward()

    return {"peak_bytes": peak_above_now(compare)}


def step(clips: int, decoder_chunk: int = 0, checkpoint_towers: bool = False) -> dict[str, float]:
    """Forward and backward of one micro-batch, model and inputs not counted."""
    from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
    from cavmae_ds.models.cavmae.masking import draw_plans
    from cavmae_ds.models.cavmae.model import CAVMAE
    from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
    from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses, reconstruction_loss

    cfg = ModelConfig(**BASE_IN_SMALL, decoder_chunk=decoder_chunk, checkpoint_towers=checkpoint_towers)
    model, loss = CAVMAE(cfg), LossConfig()
    plans = draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(clips))
    audio, images = torch.randn(clips, 1024, 128), torch.randint(0, 255, (clips, 3, 224, 224), dtype=torch.uint8)

    def train() -> None:
        output = model(audio, images, plans, decoder_loss=lambda output: reconstruction_loss(output, loss))
        pretrain_losses(output, contrast_within(output, ContrastiveConfig()), loss).total.backward()

    peak = peak_above_now(train)
    started = time.process_time()
    train()
    return {"peak_bytes": peak, "cpu_s": time.process_time() - started}


def optimizer_steps(
    model: dict[str, int], clips: int, micro_batch: int, passes: list[int], rounds: int = 1
) -> dict[str, float]:
    """Steps of a DeepSpeed engine on one rank, ways in turn: CPU seconds of each way (its fastest), peak of all."""
    from cavmae_ds.data.transforms.front_end import ahead
    from cavmae_ds.distributed.process_group import close_world, open_world

    world = open_world()
    ways = {count: _training_step(model, clips, micro_batch, count == 2, world) for count in passes}
    seconds: dict[int, list[float]] = {count: [] for count in passes}
    peaks = []
    for _ in range(rounds):
        for count, (training_step, front_end, sizes) in ways.items():
            batches = (_clips(sizes, first, micro_batch) for first in range(0, clips, micro_batch))
            started = time.process_time()
            peaks.append(peak_above_now(lambda: training_step(ahead(batches, front_end))))  # noqa: B023
            seconds[count].append(time.process_time() - started)
    close_world()
    return {f"cpu_s of {count} passes": min(taken) for count, taken in seconds.items()} | {"peak_bytes": max(peaks)}


def _training_step(model: dict[str, int], clips: int, micro_batch: int, two_pass: bool, world: Any) -> tuple:
    from cavmae_ds.data.transforms.front_end import FrontEnd
    from cavmae_ds.models.cavmae import inputs
    from cavmae_ds.models.cavmae.model import CAVMAE
    from cavmae_ds.tasks import validate_run
    from cavmae_ds.tasks.pretrain.plan import PretrainPlan
    from cavmae_ds.tasks.pretrain.step import TrainingStep
    from cavmae_ds.tasks.pretrain.task import Pretraining
    from cavmae_ds.training.engine import build_engine

    cfg = validate_run(
        {
            "ds_config": "ds_configs/zero0.json",
            "model": model,
            "contrastive": {"two_pass": two_pass},
            "train": {"global_batch": clips, "micro_batch": micro_batch, "steps": 10, "precision": "fp32"},
        }
    )
    known = {"accumulation": clips // micro_batch, "total_steps": 10, "steps_per_epoch": 10}
    numbers = PretrainPlan(**({field.name: 0 for field in fields(PretrainPlan)} | known))  # type: ignore[arg-type]
    engine = build_engine(Pretraining(cfg, numbers), CAVMAE(cfg.model), world)
    front_end = FrontEnd(inputs(cfg.model), world.device)
    return TrainingStep(cfg, numbers.accumulation, world, engine, front_end), front_end, cfg.model


def _clips(cfg: Any, first: int, count: int) -> Any:
    """Noise in the sizes that a loader hands over, the same for the same clips."""
    from cavmae_ds.data.format.clips import Batch

    draw = torch.Generator().manual_seed(first)
    samples = 160 * cfg.audio_frames + 240
    audio = torch.randint(-9000, 9000, (count, samples), generator=draw, dtype=torch.int16)
    frames = torch.randint(0, 255, (count, 1, 3, cfg.image_size, cfg.image_size), generator=draw, dtype=torch.uint8)
    index = torch.arange(first, first + count)
    zeros = torch.zeros_like(index)
    return Batch(index, zeros, audio, zeros + samples, frames, [[] for _ in index], [])


WORKS: dict[str, Callable[..., dict[str, float]]] = {
    work.__name__: work for work in (contrastive, step, optimizer_steps)
}


def measure(work: str, **arguments: Any) -> dict[str, Any]:
    """One measurement in a fresh process, single-threaded: what was asked for and what came out."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps([work, arguments])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return {"work": work, **arguments, **json.loads(done.stdout.splitlines()[-1])}


def slope(rows: list[dict[str, Any]]) -> float:
    """Of peak_bytes over candidates, both in logarithms, by least squares: 1 is linear, 2 quadratic."""
    counts, peaks = ([math.log(row[key]) for row in rows] for key in ("candidates", "peak_bytes"))
    return linear_regression(counts, peaks).slope


def _all() -> dict[str, Any]:
    comparisons = [measure("contrastive", candidates=1024 * 2**power) for power in range(2, 8)]
    switches = ({}, {"decoder_chunk": 2}, {"checkpoint_towers": True}, {"decoder_chunk": 2, "checkpoint_towers": True})
    steps = [measure("step", clips=16, **switch) for switch in switches]
    passes = measure("optimizer_steps", model=BASE_IN_SMALL, clips=16, micro_batch=4, passes=[1, 2], rounds=5)
    return {
        "rows": [*comparisons, *steps, passes],
        "contrastive_slope": slope(comparisons),
        "peak_ratio": {json.dumps(switch): row["peak_bytes"] / steps[0]["peak_bytes"]
                       for switch, row in zip(switches, steps, strict=True)},
        "two_pass_time_ratio": passes["cpu_s of 2 passes"] / passes["cpu_s of 1 passes"],
    }  # fmt: skip


def main(one: str = "", record: int = 0) -> None:
    """Measure all, show it and write it; or one exact step on --record clips."""
    torch.set_num_threads(1)
    if one:
        work, arguments = json.loads(one)
        typer.echo(json.dumps(WORKS[work](**arguments)))
        return
    if record:
        started = time.perf_counter()
        found = measure("optimizer_steps", model=TINY, clips=record, micro_batch=64, passes=[2])
        results, name = {"rows": [found], "seconds": time.perf_counter() - started}, f"record-{record}"
    else:
        results, name = _all(), "memory"
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    path = Path(__file__).with_name("results") / f"{name}-{date.today().isoformat()}.json"
    path.write_text(json.dumps(machine | results, indent=1) + "\n")
    typer.echo(path.read_text())


if __name__ == "__main__":
    typer.run(main)

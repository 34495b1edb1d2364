"""Bytes that training really holds on a CPU beside those that cavmae_ds.plan predicts.

`python -m benchmarks.plan_memory` prints the activations' table of docs/scaling.md. With a file to write, which is how
the deepspeed launcher starts it on every rank, it measures engines' states instead. Counted are tensors, not pages:
the same numbers every time.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the launcher starts a file, not a module


from cavmae_ds.distributed.collectives import barrier
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.plan.measure import Measured, measure
from cavmae_ds.plan.states import bytes_per_value
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses, reconstruction_loss
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.training.engine import build_engine

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "embed_dim": 192, "num_heads": 4, "modality_specific_depth": 2, "decoder_embed_dim": 128, "decoder_depth": 2,
        "decoder_num_heads": 4, "image_size": 112, "audio_frames": 256,
    },
    "deep, narrow MLP": {
        "embed_dim": 96, "num_heads": 4, "modality_specific_depth": 6, "shared_depth": 2, "decoder_embed_dim": 64,
        "decoder_depth": 1, "decoder_num_heads": 2, "image_size": 64, "audio_frames": 128, "mlp_ratio": 3.0,
    },
    "base, a third as deep": {"modality_specific_depth": 3, "decoder_depth": 3},
}  # fmt: skip
"""Models by name: keys of the `model` section."""

BUCKET = 1_000_000
"""reduce_bucket_size of the measured engines, elements: DeepSpeed's default would hide everything else."""
ENGINES: dict[int, dict[str, Any]] = {
    0: {"stage": 0},
    1: {"stage": 1, "reduce_bucket_size": BUCKET},
    2: {"stage": 2, "reduce_bucket_size": BUCKET, "overlap_comm": True, "contiguous_gradients": True},
    3: {
        "stage": 3, "reduce_bucket_size": BUCKET, "overlap_comm": True, "contiguous_gradients": True,
        "memory_efficient_linear": False, "stage3_param_persistence_threshold": 0,
    },
}  # fmt: skip
"""Like ds_configs/*.json, but for what keeps small models from being sharded."""


AT_REST_S = 0.5
"""Between two measurements that must agree."""


class Held(NamedTuple):
    """Bytes of tensors that a forward and backward pass allocated, inputs not counted."""

    after_forward: int
    peak: int


def run_of(size: str, precision: str, clips: int, **sections: Any) -> PretrainConfig:
    """A run of one micro-batch; sections are merged into its own."""
    values: dict[str, Any] = {
        "model": SIZES[size],
        "train": {"global_batch": clips, "micro_batch": clips, "steps": 2, "precision": precision},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys} if isinstance(keys, dict) else keys
    return validate_run(values)


def predicted(cfg: PretrainConfig) -> Measured:
    """What the plan measures of the run's micro-batch without running it, with the references that a CPU runs."""
    return measure(cfg, cfg.train.micro_batch, kernels=False)


def measured(cfg: PretrainConfig) -> Held:
    """What the run's micro-batch allocates on this CPU, as torch's allocator reports it to the profiler."""
    torch.manual_seed(0)
    model = CAVMAE(cfg.model).to(torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)
    inputs = _inputs(cfg)
    _losses(model, cfg, inputs)[0].backward()  # the gradients exist from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        with record_function("forward"):
            loss, output = _losses(model, cfg, inputs)
        loss.backward()
        del output  # training looks at it after backward
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    end = next(event.end_ns() for event in events if event.name() == "forward")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = after_forward = peak = 0
    for at, change in changes:
        held += change
        peak = max(peak, held)
        after_forward = held if at <= end else after_forward
    return Held(after_forward, peak)


def _inputs(cfg: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    model, clips = cfg.model, cfg.train.micro_batch
    sides = clips, 3, model.image_size, model.image_size
    return torch.randn(clips, model.audio_frames, model.mel_bins), torch.randint(0, 256, sides, dtype=torch.uint8)


def _losses(
    model: Any, cfg: PretrainConfig, inputs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, PretrainOutput]:
    plans = draw_plans(cfg.model, cfg.mask, 0, 0, torch.arange(cfg.train.micro_batch))
    mae, contrastive = cfg.loss.mae_weight > 0, cfg.loss.contrastive_weight > 0
    decoder_loss = partial(reconstruction_loss, cfg=cfg.loss)
    output: PretrainOutput = model(*inputs, plans, mae=mae, contrastive=contrastive, decoder_loss=decoder_loss)
    contrast = contrast_within(output, cfg.contrastive) if contrastive else None
    return pretrain_losses(output, contrast, cfg.loss).total, output


def held_by_engine(cfg: PretrainConfig, world: World) -> dict[str, int]:
    """Bytes of all tensors of this rank that an engine brought along, between backward and step of its second step.

    held: all; bucket_buffers: those of them as large as a bucket, at the time when backward begins.
    """
    before = _storages()  # kept alive, so that no address comes back as somebody else's
    engine = build_engine(Pretraining(cfg, Pretraining.resolve(cfg, world.size, clips=1000)), CAVMAE(cfg.model), world)
    audio, frames = _inputs(cfg)
    inputs = audio.to(next(engine.module.parameters()).dtype), frames
    bucket = BUCKET * bytes_per_value(cfg.train.precision)
    found: dict[str, int] = {}

    def count_buckets(_: torch.Tensor) -> None:
        found["bucket_buffers"] = sum(size for size in _sizes(before) if size == bucket)

    for step in range(2):
        loss, output = _losses(engine, cfg, inputs)
        if output.audio_pooled is not None:
            output.audio_pooled.register_hook(count_buckets)
        engine.backward(loss)
        del loss, output
        if step:
            del inputs, audio, frames
            found["held"] = held_at_rest(lambda: sum(_sizes(before)))
        engine.step()
    engine.destroy()
    return found


def held_at_rest(measure: Callable[[], int]) -> int:
    """The bytes that `measure` counts once they no longer become fewer.

    gloo's threads let go of a collective's tensors after its wait() has returned: on two busy cores up to 0.1 s after.
    The last collective of a backward pass under ZeRO-1 in bf16 is over a copy of all gradients.
    """
    gc.collect()
    held, before = measure(), 0
    while held != before:
        time.sleep(AT_REST_S)
        held, before = measure(), held
    return held


def _storages() -> dict[int, torch.UntypedStorage]:
    """Every storage that a tensor known to Python uses, by address; gradients too."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # not isinstance: lazy modules would be imported by the question
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return found


def _sizes(before: dict[int, torch.UntypedStorage]) -> list[int]:
    return [storage.nbytes() for address, storage in _storages().items() if address not in before]


def engine_run(stage: int, precision: str, ranks: int, folder: Path) -> PretrainConfig:
    """A run of two clips a rank under ENGINES[stage], whose file goes into the folder."""
    engine_file = folder / f"zero{stage}.json"
    engine_file.write_text(json.dumps({"zero_optimization": ENGINES[stage]}))
    return run_of("small", precision, 2, ds_config=str(engine_file), train={"global_batch": 2 * ranks})


def _measure_engines(out: Path, names: list[str]) -> None:
    """On every rank: one engine after another, by default all; the first rank writes what it held."""
    world, rows = open_world(), {}
    own = out.parent / f"rank{world.rank}"
    own.mkdir(exist_ok=True)
    for name in names or [f"{stage}-{p}" for stage in ENGINES for p in ("fp32", "bf16") if stage or p == "fp32"]:
        stage, precision = name.split("-")
        rows[name] = held_by_engine(engine_run(int(stage), precision, world.size, own), world)
    if world.is_first:
        out.write_text(json.dumps(rows))
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that tears down so many engines


def compare(cfg: PretrainConfig) -> tuple[str, int, int]:
    """What is compared, measured and predicted bytes: what forward leaves behind or, with chunks, the peak."""
    found, plan = measured(cfg), predicted(cfg)
    if cfg.model.decoder_chunk:
        return "peak", found.peak, plan.peak
    return "after forward", found.after_forward, plan.saved


def _print_activations() -> None:
    """The table of docs/scaling.md: 4 clips."""
    print("| model | precision | decoder_chunk | checkpoint_towers | compared | measured MB | predicted MB | ratio |")  # noqa: T201
    print("|---|---|---:|---|---|---:|---:|---:|")  # noqa: T201
    for size in SIZES:
        for precision in ("fp32", "bf16"):
            for chunk, recompute in ((0, False), (0, True), (1, False), (1, True)):
                cfg = run_of(size, precision, 4, model={"decoder_chunk": chunk, "checkpoint_towers": recompute})
                what, found, plan = compare(cfg)
                cells = f"{what} | {found / 1e6:.2f} | {plan / 1e6:.2f} | {plan / found:.3f}"
                print(f"| {size} | {precision} | {chunk} | {str(recompute).lower()} | {cells} |")  # noqa: T201


def main(
    out: Annotated[Path | None, typer.Argument(help="On every rank: measure engines' states into this file.")] = None,
    engines: Annotated[list[str] | None, typer.Argument(help="STAGE-PRECISION, as 2-bf16; all by default.")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # the deepspeed launcher adds it
) -> None:
    """Print bytes that training holds on a CPU beside those predicted: the activations' table of docs/scaling.md."""
    if out is None:
        _print_activations()
    else:
        _measure_engines(out, engines or [])


if __name__ == "__main__":
    typer.run(main)

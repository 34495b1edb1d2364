"""Run by every rank: what a rank holds of a model made in shards, and how it trains."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.collectives import barrier
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.distributed.zero_layout import whole_shape
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.losses import pretrain_losses
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.training.engine import build_engine, build_model
from tests.training.gathered import full_weights
from tests.training.optim_problem import numbers

MIDDLING = {"preset": "tiny", "embed_dim": 384, "modality_specific_depth": 8}  # 119 MiB
SHARDED = [("zero3_offload", "fp32"), ("zero3", "bf16")]
SMALL = {
    "embed_dim": 32, "num_heads": 4, "modality_specific_depth": 1, "decoder_embed_dim": 16, "decoder_depth": 1,
    "decoder_num_heads": 2, "image_size": 64, "audio_frames": 64,
}  # fmt: skip


M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


def run_config(ranks: int, fragment: str, precision: str, model: dict) -> PretrainConfig:
    return validate_run(
        {
            "ds_config": f"ds_configs/{fragment}.json",
            "model": model,
            "loss": {"contrastive_weight": 0.0},
            "optim": {"schedule": "constant", "learning_rate": 1e-3, "eps": 1e-5},
            "train": {"global_batch": 8, "micro_batch": 8 // ranks, "steps": 6, "precision": precision, "seed": 11},
        }
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(world: World) -> dict[str, int]:
    """How far building a model raised this rank's peak, bytes: sharded, then plain."""
    found = {}
    for kind, fragment in (("sharded", "zero3"), ("plain", "zero2")):
        before = peak_bytes()
        model = build_model(Pretraining(run_config(world.size, fragment, "fp32", MIDDLING), numbers(world.size)), world)
        found[kind] = peak_bytes() - before
        found["whole"] = sum(whole_shape(parameter).numel() * 4 for parameter in model.parameters())
        del model
    return found


def trained(cfg: PretrainConfig, model: CAVMAE, world: World) -> dict[str, dict[str, Tensor]]:
    """Weights before and after two steps."""
    engine = build_engine(Pretraining(cfg, numbers(world.size)), model, world)
    start = full_weights(engine, world)
    for step in range(2):
        draw = torch.Generator().manual_seed(step * world.size + world.rank)
        audio, images = (
            torch.randn(cfg.train.micro_batch, *shape, generator=draw) for shape in ((64, 128), (3, 64, 64))
        )
        index = torch.arange(cfg.train.micro_batch) + step * 100 + world.rank * 10
        output = engine(audio, images, draw_plans(cfg.model, cfg.mask, cfg.train.seed, 0, index), contrastive=False)
        engine.backward(pretrain_losses(output, None, cfg.loss).total)
        engine.step()
    end = full_weights(engine, world)
    engine.destroy()
    return {"start": start, "end": end}


def plain_model(cfg: PretrainConfig) -> CAVMAE:
    torch.manual_seed(cfg.train.seed)
    return CAVMAE(cfg.model, training_normalisation(cfg.data.audio_mean, cfg.data.audio_std))


def main() -> None:
    world = open_world()
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # freed tensors leave the process, so that its peak tells
    folder = Path(sys.argv[-1])
    (folder / f"memory-{world.rank}.json").write_text(json.dumps(memory(world)))
    results = {}
    for fragment, precision in SHARDED:
        cfg = run_config(world.size, fragment, precision, SMALL)
        results[f"{fragment}-{precision}"] = trained(
            cfg, build_model(Pretraining(cfg, numbers(world.size)), world), world
        )
        results[f"plain-{precision}"] = trained(cfg, plain_model(cfg), world)
    if world.is_first:
        torch.save(results, folder / "results.pt")
    barrier()
    close_world()
    sys.stdout.flush()
    os._exit(0)  # see whole_batch_worker.py


if __name__ == "__main__":
    main()

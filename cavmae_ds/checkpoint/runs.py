"""Checkpoints: a folder `step-00000120` is whole or it is not there.

Every rank writes its shards under `step-00000120.partial`, the first rank the whole weights beside them; when all are
done it lists the files in a manifest, flushes everything to disk and renames the folder. Nothing else says which
checkpoint is the latest.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.distributed import World, barrier, from_first_rank
from cavmae_ds.durable import flush
from cavmae_ds.ema import WeightAverage
from cavmae_ds.errors import CheckpointError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
EMA = "ema.safetensors"
_PARTIAL = ".partial"


def checkpoint_root(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    folders = checkpoint_root(run_dir).glob("step-*")
    return sorted(folder for folder in folders if folder.suffix != _PARTIAL and (folder / MANIFEST).is_file())


def save(engine: Any, ema: WeightAverage | None, cfg: RunConfig, numbers: RunNumbers, world: World, step: int) -> None:
    """Save model, optimizer, schedule and running mean after `step` optimizer steps; then drop all but keep_last."""
    root = checkpoint_root(cfg.run_dir)
    final = root / f"step-{step:08d}"
    partial = final.with_name(final.name + _PARTIAL)
    if world.is_first:
        _remove_leftovers(root)
    barrier()
    engine.save_checkpoint(str(root), tag=partial.name, client_state={"step": step}, save_latest=False)
    weights = full_weights(engine, world)
    means = ema.whole() if ema else {}
    if world.is_first:  # for everybody who only reads: no DeepSpeed, no pickle
        header = {"model": cfg.model.model_dump_json()}
        save_file(weights, partial / WEIGHTS, header)
        if ema:  # frozen parameters are their own mean
            save_file(weights | means, partial / EMA, header | {"horizon_clips": str(cfg.train.ema_clips)})
    barrier()  # rank 0 may finish long before the others
    if world.is_first:
        _write_manifest(partial, step, cfg.train.global_batch, world, _identity(cfg, numbers))
        partial.rename(final)
        flush(root)
        for old in whole_checkpoints(cfg.run_dir)[: -cfg.checkpoint.keep_last]:
            _remove(old)
    barrier()


def resume(engine: Any, ema: WeightAverage | None, cfg: RunConfig, numbers: RunNumbers, world: World) -> int:
    """Load the newest whole checkpoint, if there is one; returns the optimizer steps done (0 for a fresh run).

    Raises CheckpointError if it was made for another model, seed or batch, or by another number of ranks.
    """
    latest = from_first_rank(whole_checkpoints(cfg.run_dir)[-1:])
    if not latest:
        return 0
    manifest = json.loads((latest[0] / MANIFEST).read_text())
    _check_fits(manifest, _identity(cfg, numbers), world, latest[0])
    loaded, state = engine.load_checkpoint(str(latest[0].parent), tag=latest[0].name)
    if loaded is None:  # DeepSpeed reports a missing folder by returning nothing
        raise CheckpointError(f"checkpoint {str(latest[0])!r} could not be loaded")
    if ema:
        ema.load(latest[0] / EMA)
    log.info("resumed from %s", latest[0])
    return int(state["step"])


def read_weights(run_dir: Path, ema: bool = False) -> dict[str, Tensor]:
    """The newest checkpoint's weights, or their running mean, under official names, whole, float32.

    Raises CheckpointError if there is no checkpoint, or no mean in it.
    """
    found = whole_checkpoints(run_dir)
    if not found:
        raise CheckpointError(f"run folder {str(run_dir)!r} holds no checkpoint; pretrain first or give another folder")
    path = found[-1] / (EMA if ema else WEIGHTS)
    if ema and not path.is_file():
        raise CheckpointError(
            f"checkpoint {str(found[-1])!r} holds no running mean of the weights; train with train.ema_clips, or take "
            "the weights themselves"
        )
    return load_file(path)


def full_weights(engine: Any, world: World) -> dict[str, Tensor]:
    """Every parameter whole and in float32, on the first rank's CPU; the other ranks help and get nothing.

    Gathered one at a time, from the optimizer's fp32 masters where there are any.
    """
    import deepspeed

    weights = {}
    for name, parameter in engine.module.named_parameters():
        whole = deepspeed.utils.safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if whole is None:
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().float().clone()
        if world.is_first:
            weights[name] = whole.detach().cpu().clone()
    return weights


def _identity(cfg: RunConfig, numbers: RunNumbers) -> dict[str, Any]:
    """What must be the same for a resume to continue the same run: setting -> value."""
    # The sizes count, not what they were called, nor in which portions they are computed.
    sizes = cfg.model.model_dump(mode="json", exclude={"preset", "decoder_chunk", "checkpoint_towers"})
    model = {f"model.{key}": value for key, value in sizes.items()}
    train = {f"train.{key}": getattr(cfg.train, key) for key in ("seed", "global_batch", "precision")}
    ema = {"train.ema_clips": cfg.train.ema_clips} if cfg.train.ema_clips else {}  # may be given up, not taken up
    optim = {"optim.name": cfg.optim.name}
    data = {f"data.{key}": getattr(cfg.data, key) for key in ("sampling", "validation_share")}
    counts = {"clips in each source": list(numbers.clips_by_source), "clips in an epoch": numbers.epoch_clips}
    return model | train | ema | optim | data | counts


def _write_manifest(folder: Path, step: int, global_batch: int, world: World, identity: dict[str, Any]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "step": step,
        "clips_seen": step * global_batch,
        "ranks": world.size,
        "identity": identity,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*files, folder / MANIFEST, folder):
        flush(path)


def _check_fits(manifest: dict[str, Any], identity: dict[str, Any], world: World, folder: Path) -> None:
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: {name} is missing or not {size} bytes long")
    if manifest["ranks"] != world.size:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} was saved by {manifest['ranks']} ranks, this run has {world.size}; "
            f"start {manifest['ranks']} ranks or choose another run_dir"
        )
    differing = [key for key, value in identity.items() if manifest["identity"].get(key) != value]
    if differing:
        changes = ", ".join(f"{key} was {manifest['identity'].get(key)}, now {identity[key]}" for key in differing)
        raise CheckpointError(
            f"checkpoint {str(folder)!r} belongs to another run ({changes}); restore it or choose another run_dir"
        )


def _remove_leftovers(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(leftover)


def _remove(folder: Path) -> None:
    """Rename first: a kill in the middle of deleting must not leave half a checkpoint under a whole one's name."""
    doomed = folder.with_name(folder.name + _PARTIAL)
    folder.rename(doomed)
    shutil.rmtree(doomed)

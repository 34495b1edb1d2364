"""What must be the same for a resume to continue the same run. The number of ranks and the ZeRO stage are not.

Nor is section init: it says nothing of the steps to come, a resume does not open what it names, and that may have been
moved or removed since. But whoever changes it hears that it is not acted upon.
"""

from __future__ import annotations

import logging
from typing import Any

from cavmae_ds.checkpoint.folder import Manifest
from cavmae_ds.config import CommonConfig, FinetuneConfig, RunConfig
from cavmae_ds.config.derived import CommonNumbers, FinetuneNumbers
from cavmae_ds.errors import CheckpointError

log = logging.getLogger(__name__)

_POOL = "clips compared with each other"


def identity(cfg: CommonConfig, numbers: CommonNumbers) -> dict[str, Any]:
    """Setting -> value, as JSON has them."""
    # The sizes count, not what they were called, nor in which portions they are computed.
    sizes = cfg.model.model_dump(mode="json", exclude={"preset", "decoder_chunk", "checkpoint_towers"})
    model = {f"model.{key}": value for key, value in sizes.items()}
    train = {f"train.{key}": getattr(cfg.train, key) for key in ("seed", "global_batch", "precision")}
    ema = {"train.ema_clips": cfg.train.ema_clips} if cfg.train.ema_clips else {}  # may be given up, not taken up
    optim = {"optim.name": cfg.optim.name}
    data = {f"data.{key}": getattr(cfg.data, key) for key in ("sampling", "validation_share")}
    counts = {"clips in each source": list(numbers.clips_by_source), "clips in an epoch": numbers.epoch_clips}
    return model | train | ema | optim | data | counts | _of_kind(cfg, numbers)


def check_same_run(manifest: Manifest, cfg: CommonConfig, numbers: CommonNumbers, address: str) -> None:
    """Raises CheckpointError, naming what differs, if a checkpoint is not this run's; says so if its origin differs."""
    now, saved = identity(cfg, numbers), manifest.identity
    differing = [key for key, value in now.items() if key != _POOL and saved.get(key) != value]
    if differing:
        changes = ", ".join(f"{key} was {saved.get(key)}, now {now[key]}" for key in differing)
        raise CheckpointError(
            f"checkpoint {address!r} belongs to another run ({changes}); restore it or choose another run_dir"
        )
    if isinstance(cfg, RunConfig) and _POOL in now and _POOL in saved and now[_POOL] != saved[_POOL]:
        raise CheckpointError(
            f"checkpoint {address!r} has every clip compared among {saved[_POOL]}, this run (ranks: {numbers.ranks}, "
            f"train.micro_batch: {cfg.train.micro_batch}) among {now[_POOL]}; "
            f"{_advice(cfg, manifest.ranks, numbers.ranks, saved[_POOL])} or choose another run_dir"
        )
    _say_if_other_origin(manifest, cfg, address)


def _say_if_other_origin(manifest: Manifest, cfg: CommonConfig, address: str) -> None:
    now, saved = cfg.init.model_dump(mode="json"), manifest.config.get("init", {})
    changes = [f"init.{key} was {saved.get(key)}, now {value}" for key, value in now.items() if saved.get(key) != value]
    if cfg.init.given and changes:
        log.warning(
            "%s: this run goes on from checkpoint %r; to begin with other weights choose another run_dir",
            ", ".join(changes), address,
        )  # fmt: skip


def _of_kind(cfg: CommonConfig, numbers: CommonNumbers) -> dict[str, Any]:
    """What only pretraining, or only finetuning, has."""
    if isinstance(cfg, FinetuneConfig) and isinstance(numbers, FinetuneNumbers):
        sections = {"classifier": cfg.classifier, "augment": cfg.augment, "average": cfg.average}
        settings = {
            f"{name}.{key}": value
            for name, section in sections.items()
            for key, value in section.model_dump(mode="json").items()
        }
        return settings | {"classifier.classes": numbers.classes}
    if isinstance(cfg, RunConfig):
        pretraining: dict[str, Any] = {"augment.noise": True} if cfg.augment.noise else {}  # may be given up
        if cfg.loss.contrastive_weight > 0:
            pretraining[_POOL] = _pool(cfg, numbers.ranks, cfg.train.micro_batch, cfg.contrastive.two_pass)
        return pretraining
    return {}


def _pool(cfg: RunConfig, ranks: int, micro_batch: int, two_pass: bool) -> int:
    """Candidates for a clip in the contrastive loss, itself among them (contrastive.Negatives)."""
    if cfg.contrastive.chunks:
        return cfg.train.global_batch // cfg.contrastive.chunks
    everywhere = cfg.train.global_batch if two_pass else micro_batch * ranks
    return everywhere if cfg.contrastive.negatives == "global" else everywhere // ranks


def _advice(cfg: RunConfig, ranks_before: int, ranks: int, pool: int) -> str:
    """What gives so many candidates again: "set train.micro_batch: 4 or contrastive.two_pass: true"."""
    batch, two_pass = cfg.train.global_batch, cfg.contrastive.two_pass
    fitting = (micro for micro in range(1, batch // ranks + 1) if batch % (micro * ranks) == 0)
    settings = [f"train.micro_batch: {micro}" for micro in fitting if _pool(cfg, ranks, micro, two_pass) == pool][:1]
    if not two_pass and _pool(cfg, ranks, cfg.train.micro_batch, True) == pool:
        settings.append("contrastive.two_pass: true")
    return f"set {' or '.join(settings)}" if settings else f"start it on as many ranks as before ({ranks_before})"

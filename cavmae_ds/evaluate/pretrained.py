"""A run folder becomes a model ready to look at clips: one process, float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cavmae_ds.config import RunConfig
from cavmae_ds.config.load import load_config
from cavmae_ds.data.clips import Batch, collate
from cavmae_ds.data.front_end import FrontEnd
from cavmae_ds.data.shards import check_shards
from cavmae_ds.data.stream import EvaluationClips
from cavmae_ds.exchange.load import load_model
from cavmae_ds.model.cavmae import CAVMAE


@dataclass(frozen=True)
class Pretrained:
    """A trained model, its run's config and the front end that feeds it."""

    cfg: RunConfig
    model: CAVMAE
    front_end: FrontEnd
    device: torch.device


def load_pretrained(run_dir: Path, ema: bool = False) -> Pretrained:
    """The newest checkpoint of a run, or the running mean of its weights.

    Raises CheckpointError (none there) or ConfigError (no config.yaml there).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = load_config(run_dir / "config.yaml")
    model = cast(CAVMAE, load_model(run_dir, ema, device=device).model)
    return Pretrained(cfg, model, FrontEnd(cfg.model, device), device)


def evaluation_clips(pretrained: Pretrained, shards: str) -> EvaluationClips:
    """The clips of some shards. Raises DataError if they are not there or their frames are of another size."""
    check_shards(shards, pretrained.cfg.model)
    return EvaluationClips(shards, pretrained.cfg.data.cache)


def evaluation_batches(pretrained: Pretrained, shards: str, batch_size: int = 32) -> DataLoader:
    """Every clip of some shards once, in order, as Batches."""
    return DataLoader(evaluation_clips(pretrained, shards), batch_size=batch_size, collate_fn=collate)


@torch.inference_mode()
def pooled_features(pretrained: Pretrained, batch: Batch) -> tuple[Tensor, Tensor]:
    """Unmasked clips to mean-pooled audio and image features [B, D] after the modality norms (spec/cav-mae.md 5.2)."""
    audio, images = pretrained.model.features(*pretrained.front_end(batch))  # [B, L, D] each
    assert audio is not None and images is not None
    return audio.mean(1), images.mean(1)

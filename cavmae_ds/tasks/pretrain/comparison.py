"""Who is compared with whom in a step, and what that takes: bytes on a GPU, bytes received, FLOPs (spec/scale.md 3)."""

from __future__ import annotations

from dataclasses import dataclass

from cavmae_ds.plan.measure import first_pass
from cavmae_ds.plan.states import FP32
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, PretrainConfig
from cavmae_ds.tasks.task import AcrossClips

TILE_ROWS, TILE_COLUMNS = 2048, 4096
"""Largest tile of logits that exists at once (kernels/contrastive_tiles.py)."""
TILES = 3
"""Tiles alive together in backward: products, slope and its temporary on a CPU; the kernels make do with two."""


@dataclass(frozen=True)
class Comparison:
    """One rank's part of one contrastive loss."""

    rows: int
    """Clips of this rank."""
    candidates: int
    """Clips that each of them is compared with, its own partner among them."""
    per_step: int
    """How often this happens in an optimizer step."""

    @property
    def crosses_ranks(self) -> bool:
        return self.candidates > self.rows


def across_clips(cfg: PretrainConfig, ranks: int) -> AcrossClips:
    """All that the contrastive loss adds to a step of one rank."""
    compared = comparison(cfg, ranks)
    if compared is None:
        return AcrossClips()
    width = first_pass(cfg).output.audio_pooled.shape[-1]
    # With one micro-batch a step, one pass compares all there is.
    passes = cfg.contrastive.two_pass and cfg.train.micro_batch * ranks < cfg.train.global_batch
    return AcrossClips(
        candidates=compared.candidates,
        whole=_whole(cfg, ranks),
        held=contrast_bytes(cfg.contrastive, compared, width),
        received=contrast_traffic(cfg.contrastive, compared, width),
        flops=contrast_flops(compared, width),
        first_pass=passes,
    )


def comparison(cfg: PretrainConfig, ranks: int) -> Comparison | None:
    """None when the run has no contrastive loss. Two passes see the whole step at once, else each micro-batch."""
    if not cfg.loss.contrastive_weight:
        return None
    own, micro_batch = cfg.train.global_batch // ranks, cfg.train.micro_batch
    rows, times = (own, 1) if cfg.contrastive.two_pass else (micro_batch, own // micro_batch)
    if cfg.contrastive.negatives == "rank":
        return Comparison(rows, rows, times)
    if cfg.contrastive.chunks:
        part = cfg.train.global_batch // cfg.contrastive.chunks
        return Comparison(rows, max(part, 1), times)
    return Comparison(rows, rows * ranks, times)


def contrast_bytes(cfg: ContrastiveConfig, compared: Comparison, width: int) -> int:
    """Bytes on one GPU while a loss and its gradient are computed; nothing grows with rows x candidates.

    Own rows of both modalities with their gradients; the candidates on the wire's dtype and their fp32 gradients
    (exchange gather), or two blocks of each that travel (ring); a tile of logits; statistics.
    """
    rows, candidates = compared.rows, compared.candidates
    own = 2 * 2 * rows * width * FP32
    tile = TILES * min(rows, TILE_ROWS) * min(candidates, TILE_COLUMNS) * FP32
    statistics = 4 * (rows + (candidates if cfg.direction == "both" else 0)) * FP32
    elsewhere = 0
    if compared.crosses_ranks:
        held = 2 * rows if cfg.exchange == "ring" else candidates
        elsewhere = held * width * (_wire(cfg) + FP32)
    return own + tile + statistics + elsewhere


def contrast_traffic(cfg: ContrastiveConfig, compared: Comparison, width: int) -> int:
    """Bytes that one GPU receives in an optimizer step: the other ranks' sounds once, their fp32 gradients once.

    A ring moves the sounds a second time, for its way back computes the logits anew, and takes each gradient one hop
    more, home. Images stay where they are; direction both costs two numbers a sound, summed over ranks.
    """
    if not compared.crosses_ranks:
        return 0
    ring, others = cfg.exchange == "ring", compared.candidates - compared.rows
    rows = others * width * (2 if ring else 1) * _wire(cfg)
    gradients = (compared.candidates if ring else others) * width * FP32
    statistics = 2 * 2 * others * FP32 if cfg.direction == "both" else 0
    return compared.per_step * (rows + gradients + statistics)


def contrast_flops(compared: Comparison, width: int) -> int:
    """FLOPs of one rank in an optimizer step: logits, logits again, gradients of both sides: 8 N D a clip.

    Both directions share them.
    """
    return compared.per_step * 8 * compared.rows * compared.candidates * width


def _whole(cfg: PretrainConfig, ranks: int) -> bool:
    """A comparison across ranks spans one micro-batch of each, unless two passes make it span the step."""
    micro_batches = max(cfg.train.global_batch // (ranks * cfg.train.micro_batch), 1)
    if cfg.contrastive.two_pass or cfg.contrastive.negatives == "rank":
        return True
    if cfg.contrastive.chunks:
        return cfg.contrastive.chunks % micro_batches == 0
    return micro_batches == 1


def _wire(cfg: ContrastiveConfig) -> int:
    """Bytes of a value that travels."""
    return 2 if cfg.gather_dtype == "bf16" else FP32

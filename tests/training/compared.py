"""The contrastive loss alone, in float64: features of 24 clips over ranks and micro-batches, compared in all ways."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cavmae_ds.distributed.collectives import mean_over_ranks, start_gather
from cavmae_ds.distributed.process_group import World
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig
from cavmae_ds.tasks.pretrain.contrastive import Negatives

CLIPS, WIDTH = 24, 16

WAYS = [
    ContrastiveConfig(direction=direction, negatives=negatives, exchange=exchange, two_pass=True)
    for direction in ("v2a", "both")
    for negatives, exchange in [
        ("global", "gather"),
        ("global", "ring"),
        *((f"chunk={n}", "gather") for n in (1, 2, 3, 4, 6, 12, 24)),
    ]
]
"""Parts of 24, 12, 8, 6, 4, 2 and 1 clips: of several ranks, across the ends of micro-batches, and within them."""

MICRO_BATCHES = (1, 2, 3)


def features(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Pooled features of sounds and images [24, 16] that resemble one another."""
    draw = torch.Generator().manual_seed(5)  # of which v2a and a2v accuracy differ
    audio, other = (torch.randn(CLIPS, WIDTH, generator=draw, dtype=dtype) for _ in range(2))
    return audio, audio + other


def compare_everywhere(world: World) -> dict[str, list[Tensor]]:
    """name -> loss, accuracy, gradient on sounds, gradient on images (in the order of the global batch)."""
    found = {}
    for cfg, count in itertools.product(WAYS, MICRO_BATCHES):
        each = CLIPS // world.size // count
        rows = torch.cat([torch.arange(each) + (part * world.size + world.rank) * each for part in range(count)])
        audio, image = (side[rows].requires_grad_() for side in features())
        negatives = Negatives(cfg, world, accumulation=count)
        contrast = negatives.finish(negatives.start(audio, image))
        contrast.loss.backward()
        order = start_gather(rows)().argsort()
        gradients = [start_gather(x.grad / world.size)()[order] for x in (audio, image)]
        found[name(cfg, count)] = [*(mean_over_ranks(term.detach()) for term in contrast), *gradients]
    audio, image = (side.chunk(world.size)[world.rank].requires_grad_() for side in features(torch.float32))
    negatives = Negatives(ContrastiveConfig(gather_dtype="bf16"), world, accumulation=1)
    loss = negatives.finish(negatives.start(audio, image)).loss
    loss.backward()
    found["bf16"] = [mean_over_ranks(loss.detach()), *(start_gather(x.grad / world.size)() for x in (audio, image))]
    return found


def name(cfg: ContrastiveConfig, micro_batches: int) -> str:
    """One way, in one word."""
    return f"{cfg.direction}-{cfg.negatives}-{cfg.exchange}-{micro_batches}"

"""Who is compared with whom: the contrastive loss among the clips of all ranks.

W ranks compare G micro-batches of b clips each (one, or all of a step: contrastive.two_pass): N = W * G * b clips,
D wide. Only sounds travel between ranks. For the other direction ranks exchange three numbers a sound: the
largest of its products with their images and a sum, of which its log-sum-exp is made, and the image of the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.distributed.collectives import (
    gather_rows,
    max_over_ranks,
    start_gather,
    start_pass_on,
    sum_over_ranks,
    sum_to_owners,
)
from cavmae_ds.distributed.process_group import World
from cavmae_ds.kernels.contrastive import Contrast, Side, contrastive_among, unit_rows
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig
from cavmae_ds.tasks.pretrain.losses import contrastive_loss


class Started(NamedTuple):
    """This rank's clips, and the other ranks' on their way."""

    audio: Tensor
    """[G*b, D] unit rows, float32 or wider."""
    image: Tensor
    """[G*b, D] likewise."""
    side: Side | None
    """The sounds of all ranks, where they are compared as one."""


class Negatives:
    """The comparison that a run asks for. In two steps, so that clips can travel while the decoder runs."""

    def __init__(self, cfg: ContrastiveConfig, world: World, accumulation: int):
        """accumulation: micro-batches of an optimizer step."""
        self._cfg, self._world = cfg, world
        self._micro_batches = accumulation if cfg.two_pass else 1
        self._chunks = (cfg.chunks or 1) * self._micro_batches // accumulation
        self._across = cfg.negatives == "global" and world.size > 1

    def start(self, audio_pooled: Tensor, image_pooled: Tensor) -> Started:
        """Pooled features [G*b, D] of this rank, micro-batch after micro-batch, to what finish takes."""
        audio, image = unit_rows(audio_pooled), unit_rows(image_pooled)
        if not self._across:
            return Started(audio, image, None)
        side = RingOfRanks if self._cfg.exchange == "ring" else GatheredRanks
        wire = torch.bfloat16 if self._cfg.gather_dtype == "bf16" else audio.dtype
        return Started(audio, image, side(audio, self._world, wire))

    def finish(self, started: Started) -> Contrast:
        """Loss and accuracy, means over this rank's clips: their mean over ranks is that of all clips.

        Gradients averaged over ranks, as DeepSpeed does, are then those of one process with all clips; no further
        factor (spec/engine-notes.md 1).
        """
        audio, image, side = started
        if side is not None:
            return contrastive_among(image, audio, side, self._cfg.temperature, self._cfg.direction == "both")
        if self._cfg.chunks is None:
            return self._compare(audio, image, audio, image, 0)
        return self._in_chunks(audio, image)

    def _in_chunks(self, audio: Tensor, image: Tensor) -> Contrast:
        """Each clip among those of its part: N / chunks clips that follow one another in the global batch."""
        size = len(audio) * self._world.size // self._chunks
        per_micro_batch = len(audio) // self._micro_batches
        if per_micro_batch % size == 0:  # whole parts, no other rank's clips in them
            parts = zip(audio.split(size), image.split(size), strict=True)
            found = [(size, self._compare(a, v, a, v, 0)) for a, v in parts]
        else:  # no rank has whole parts only, so all of them take part in what gather_rows does in backward
            audio_all = self._in_order(gather_rows(audio))
            image_all = self._in_order(gather_rows(image)) if self._cfg.direction == "both" else audio_all
            found = [
                (own.stop - own.start, self._compare(audio[own], image[own], audio_all[part], image_all[part], first))
                for own, part, first in self._pieces(per_micro_batch, size)
            ]
        by_term = zip(*(contrast for _, contrast in found), strict=True)
        weights = torch.tensor([clips / len(audio) for clips, _ in found], dtype=audio.dtype, device=audio.device)
        return Contrast(*(torch.stack(values) @ weights for values in by_term))

    def _compare(self, audio: Tensor, image: Tensor, audio_all: Tensor, image_all: Tensor, first_row: int) -> Contrast:
        return contrastive_loss(
            audio, image, audio_all, image_all, first_row, self._cfg.temperature, self._cfg.direction
        )

    def _in_order(self, rows: Tensor) -> Tensor:
        """Gathered rows [N, D], rank after rank, in the order of the global batch: micro-batch after micro-batch."""
        ranks, micro_batches = self._world.size, self._micro_batches
        return rows.unflatten(0, (ranks, micro_batches, -1)).transpose(0, 1).flatten(0, 2)

    def _pieces(self, clips: int, size: int) -> Iterator[tuple[slice, slice, int]]:
        """This rank's rows cut where parts of the global batch end: own rows, their part, their first place in it."""
        for micro_batch in range(self._micro_batches):
            first = (micro_batch * self._world.size + self._world.rank) * clips  # in the global batch
            offset = micro_batch * clips - first
            at = first
            while at < first + clips:
                part = at // size * size
                stop = min(part + size, first + clips)
                yield slice(at + offset, stop + offset), slice(part, part + size), at - part
                at = stop


class _Ranks:
    """The rows of all ranks in rank order; see kernels.contrastive.Side."""

    def __init__(self, rows: Tensor, world: World, dtype: torch.dtype):
        self.first_row, self.count, self.dtype = world.rank * len(rows), world.size * len(rows), dtype
        self._world = world
        self._own = rows.detach().to(dtype)

    def combine(self, column_sums: Tensor, column_best: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-sum-exps in two halves, over all ranks' queries: 3 numbers a candidate cross the wire, not D."""
        high, total = column_sums
        highest = max_over_ranks(high)
        total = sum_over_ranks(total * ((high - highest) / temperature).exp())
        # The first of equals has the lowest number: its negative is the largest.
        best = -max_over_ranks(torch.where(high == highest, -column_best, -self.count))
        return torch.stack([highest, total]), best


class GatheredRanks(_Ranks):
    """Everybody's rows at once: memory O(N * D), one exchange each way; on the way from the start."""

    def __init__(self, rows: Tensor, world: World, dtype: torch.dtype):
        super().__init__(rows, world, dtype)
        self._arrived = start_gather(self._own)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """One block."""
        yield 0, self._arrived()

    def gradient_blocks(self, wide: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
        """One block."""
        rows = self._arrived()
        self._gradient = torch.zeros_like(rows, dtype=wide)
        yield 0, rows, self._gradient

    def collected(self) -> Tensor:
        """What all ranks ask of this rank's rows."""
        return sum_to_owners(self._gradient)


class RingOfRanks(_Ranks):
    """One rank's rows at a time, handed from rank to rank: memory O(b * D), the next rows travel during the products.

    The way back goes round once more, and each block takes its gradient along until it is home.
    """

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Own rows first, then those of the rank before, and so on."""
        for first, rows, _ in self._round(None):
            yield first, rows

    def gradient_blocks(self, wide: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
        """In the same order."""
        for first, rows, gradient in self._round(torch.zeros_like(self._own, dtype=wide)):
            assert gradient is not None
            yield first, rows, gradient

    def collected(self) -> Tensor:
        """What all ranks ask of this rank's rows."""
        return self._gradient

    def _round(self, gradient: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        rows, size = self._own, self._world.size
        for hop in range(size):
            arriving = start_pass_on(rows) if hop + 1 < size else None
            yield (self._world.rank - hop) % size * len(rows), rows, gradient
            if gradient is not None:
                gradient = start_pass_on(gradient)()
            if arriving is not None:
                rows = arriving()
        if gradient is not None:
            self._gradient = gradient

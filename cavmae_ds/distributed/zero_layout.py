"""Where this rank's fp32 values of each parameter lie: ZeRO keeps them in flat partitions, cut at any element.

Optimizers that look at whole layers, the running mean of the weights and checkpoints need to know; nothing else does.
Reads DeepSpeed 0.19.8's own bookkeeping (spec/engine-notes.md 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cavmae_ds.distributed.collectives import sum_over_ranks
from cavmae_ds.distributed.process_group import World


class Fragment(NamedTuple):
    """A stretch of one parameter that this rank updates."""

    parameter: int
    """Which one: its turn among the trainable parameters of the model."""
    start: int
    """First element in the flat partition."""
    offset: int
    """First element in the flattened parameter."""
    numel: int
    """Elements."""

    def of(self, flat: Tensor) -> Tensor:
        """The stretch in a tensor laid out as the partition is."""
        return flat.detach().view(-1).narrow(0, self.start, self.numel)


@dataclass(frozen=True)
class Partitions:
    """The fp32 tensors that the optimizer of this rank updates, and what each stretch of them belongs to.

    Padding belongs to no fragment; it may hold anything.
    """

    names: list[str]
    """Trainable parameters, in the model's order."""
    shapes: list[torch.Size]
    """Their whole shapes."""
    flats: list[Tensor]
    """What the optimizer updates: partitions, or (stage 0) the parameters themselves."""
    fragments: list[list[Fragment]]
    """Of each flat."""
    replicated: bool
    """Every rank holds everything."""
    device: torch.device
    """Where ranks tell each other sums; partitions may lie elsewhere (offload)."""

    def over_ranks(self, values: Tensor) -> Tensor:
        """The sum of what the ranks found in their partitions, on self.device."""
        values = values.to(self.device)
        return values if self.replicated else sum_over_ranks(values)


def find_partitions(engine: Any, world: World) -> Partitions:
    """Read the layout of a DeepSpeed engine's fp32 values, right after it was built. ZeRO 0 to 3, offloaded or not."""
    trainable = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    turn = {id(parameter): number for number, (_, parameter) in enumerate(trainable)}
    zero, replicated = engine.optimizer, False
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
        flats = zero.fp32_partitioned_groups_flat
        fragments = [_shards(group, turn, world.rank) for group in zero.fp16_groups]
    elif hasattr(zero, "single_partition_of_fp32_groups"):  # stages 1 and 2
        flats = zero.single_partition_of_fp32_groups
        # Not bit16_groups: round_robin_gradients lays parameters out in an order of its own.
        groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, flats, strict=True)
        fragments = [_cuts(*group, turn, world.rank) for group in groups]
    elif hasattr(zero, "fp32_groups_flat_partition"):  # stage 1 in bf16 with fp32 accumulation
        flats = zero.fp32_groups_flat_partition
        fragments = [
            _cuts(group, _one_after_the_other(group), flat, turn, world.rank)
            for group, flat in zip(zero.bf16_groups, flats, strict=True)
        ]
    else:  # stage 0: torch's own optimizer over the parameters
        replicated = True
        flats = [parameter for _, parameter in trainable]
        fragments = [[Fragment(number, 0, 0, parameter.numel())] for number, parameter in enumerate(flats)]
    return Partitions(
        names=[name for name, _ in trainable],
        shapes=[whole_shape(parameter) for _, parameter in trainable],
        flats=list(flats),
        fragments=fragments,
        replicated=replicated,
        device=world.device,
    )


def _cuts(group: list[Tensor], offsets: Iterable[int], flat: Tensor, turn: dict[int, int], rank: int) -> list[Fragment]:
    """Stages 1 and 2: a group's parameters, each at its offset in one long row, cut into parts of the flat's length."""
    part, found = flat.numel(), []
    for parameter, first in zip(group, offsets, strict=True):
        start, stop = max(first, rank * part), min(first + parameter.numel(), (rank + 1) * part)
        if start < stop:
            found.append(Fragment(turn[id(parameter)], start - rank * part, start - first, stop - start))
    return found


def _one_after_the_other(group: list[Tensor]) -> list[int]:
    return [0, *accumulate(parameter.numel() for parameter in group[:-1])]


def _shards(group: list[Any], turn: dict[int, int], rank: int) -> list[Fragment]:
    """Stage 3: every parameter cut into equal parts; this rank's parts one after the other."""
    found, start = [], 0
    for parameter in group:
        offset, numel = _own_stretch(parameter, rank)
        if numel:
            found.append(Fragment(turn[id(parameter)], start, offset, numel))
        start += parameter.ds_tensor.ds_numel
    return found


def _own_stretch(parameter: Any, rank: int) -> tuple[int, int]:
    """Offset and length of a rank's part of a sharded parameter; the last ones may be padded."""
    part = parameter.ds_tensor.ds_numel
    return rank * part, max(0, min(part, parameter.ds_numel - rank * part))


def frozen_stretches(engine: Any, world: World) -> Iterator[tuple[str, int, Tensor]]:
    """Name, first element and values [n] of what this rank keeps of the parameters that no optimizer holds.

    The values are the parameters' own memory, in the dtype they are computed with. Below stage 3 every rank keeps all.
    """
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if not is_sharded(parameter):
            yield name, 0, parameter.detach().view(-1)
            continue
        offset, numel = _own_stretch(parameter, world.rank)
        if numel:
            yield name, offset, parameter.ds_tensor.detach().narrow(0, 0, numel)


def saved_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of the buffers that a module's state_dict has, as batch norm's running statistics.

    Every rank has all of them, at any stage. Ranks whose buffers would differ have to agree on them themselves.
    """
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


@contextmanager
def rewriting(engine: Any) -> Iterator[None]:
    """Within it a rank's fp32 values may be overwritten, and its frozen stretches.

    Afterwards the model computes with the fp32 values rounded and spread over the ranks just as after an optimizer
    step. All ranks together.
    """
    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        yield
        if engine.zero_optimization_stage() > 0:
            zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # parameters that were gathered become shards
    yield
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    zero.checkpoint_event_epilogue()  # small parameters stay gathered


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, also of one that ZeRO-3 has cut into shards (and that then looks empty)."""
    return getattr(parameter, "ds_shape", parameter.shape)


@torch.no_grad()
def write_shard(parameter: Any, value: Tensor, rank: int) -> None:
    """Give a parameter, sharded or not, its value [its shape]; all ranks call it with the same one, none talks.

    Before the engine is built: afterwards the optimizer's fp32 copy would undo it.
    """
    if not is_sharded(parameter):
        parameter.copy_(value)
        return
    offset, numel = _own_stretch(parameter, rank)
    if numel:
        parameter.ds_tensor.narrow(0, 0, numel).copy_(value.flatten().narrow(0, offset, numel))


def is_sharded(parameter: Tensor) -> bool:
    """True if ZeRO-3 has taken the parameter over."""
    return hasattr(parameter, "ds_tensor")

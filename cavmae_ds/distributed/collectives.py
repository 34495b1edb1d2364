"""What ranks exchange: the only file beside process_group.py that calls torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cavmae_ds.distributed.process_group import control_group


def barrier() -> None:
    """Wait until every rank is here."""
    dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a small tensor over all ranks, on every rank; float32 or wider."""
    return sum_over_ranks(values) / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a small tensor over all ranks, on every rank."""
    total = values.clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def from_first_rank(value: Any) -> Any:
    """The first rank's (picklable) value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def copy_from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, alike in shapes on all ranks, with the first rank's."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


def from_all_ranks(value: Any) -> list[Any]:
    """Every rank's (picklable) value in rank order, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values


def to_first_rank(value: Any) -> list[Any]:
    """Every rank's (picklable) value in rank order, on the first rank; nothing on the others."""
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=control_group())
    return values or []


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of each value over all ranks, on every rank."""
    largest = values.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def start_max(values: Sequence[int]) -> Callable[[], list[int]]:
    """Begin to find the largest of each of a few numbers over all ranks; what is returned waits for them.

    Over the control group: no device is waited for.
    """
    largest = torch.tensor(values, dtype=torch.int64)
    work = dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=control_group(), async_op=True)

    def wait() -> list[int]:
        work.wait()
        return largest.tolist()

    return wait


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows in rank order: [B, D] -> [W*B, D]; equal B on all ranks.

    The gradient is exact: each rank's rows receive the SUM of what all ranks' losses ask of them. With the loss a mean
    over the rank's own rows and gradients averaged over ranks (as DeepSpeed does) every parameter then gets the
    gradient one process would have computed on the whole batch; no further factor (spec/engine-notes.md 1).
    """
    return _GatherRows.apply(rows)


def start_gather(rows: Tensor) -> Callable[[], Tensor]:
    """Begin to gather every rank's rows [B, D]; what is returned waits for them: [W*B, D] in rank order, no gradient.

    On a GPU the rows travel while the device works on. The rows must not change until then.
    """
    rows = rows.detach().contiguous()
    gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    work = dist.all_gather_into_tensor(gathered, rows, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return gathered

    return wait


def sum_to_owners(rows: Tensor) -> Tensor:
    """Rows [W*B, D], B for each rank, summed over ranks; this rank's part [B, D]."""
    own = rows.new_empty(len(rows) // dist.get_world_size(), *rows.shape[1:])
    dist.reduce_scatter_tensor(own, rows.contiguous(), op=dist.ReduceOp.SUM)
    return own


def start_pass_on(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to send a tensor to the next rank; what is returned waits for the previous rank's, of the same shape."""
    rank, size = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor)
    there = dist.P2POp(dist.isend, tensor, (rank + 1) % size)
    here = dist.P2POp(dist.irecv, received, (rank - 1) % size)
    works = dist.batch_isend_irecv([there, here])

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return received

    return wait


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return start_gather(rows)()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_to_owners(gradient)

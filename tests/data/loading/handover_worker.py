"""Loads batches by a worker, with as many open files as the first argument says; prints what came of it."""

import resource
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.data.loading.handover import micro_batches, worker_context
from cavmae_ds.errors import DataError

TENSORS, VALUES = 200, 1000


def many_tensors(_: list[int]) -> list[torch.Tensor]:
    return [torch.zeros(VALUES) for _ in range(TENSORS)]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    loader = DataLoader(
        list(range(4)), num_workers=1, timeout=60, collate_fn=many_tensors, multiprocessing_context=worker_context(1)
    )
    try:
        print(sum(1 for _ in micro_batches(loader)), "batches")  # noqa: T201
    except DataError as error:
        print(error)  # noqa: T201

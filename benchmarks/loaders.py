"""Whole loaders: ours, and what one would write with streaming and torchaudio alone."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from streaming import StreamingDataLoader, StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.stream import ClipStream, training_loader

BATCH = 32  # clips
PREFETCH = 2  # batches of each worker
AUDIO_FRAMES = 1024
FBANK: dict[str, Any] = {
    "sample_frequency": 16_000, "window_type": "hanning", "num_mel_bins": 128, "htk_compat": True, "use_energy": False,
    "dither": 0.0, "frame_shift": 10,
}  # fmt: skip


class LoaderCost(NamedTuple):
    """CPU milliseconds a clip, and clips a second of wall time."""

    worker_ms: float
    main_ms: float
    clips_per_second: float


class StockClips(StreamingDataset):
    """One frame with Pillow, the sound as it is."""

    def __getitem__(self, at: Any) -> tuple[Tensor, Tensor]:
        sample = super().__getitem__(at)
        frame = sample[f"frame_{np.random.randint(10)}"].convert("RGB")
        image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)  # [3, H, W]
        return torch.from_numpy(np.frombuffer(sample["audio"], np.int16).copy()), image


class StockClipsWithLogMel(StockClips):
    """The log-mel with torchaudio as well: everything in the worker."""

    def __getitem__(self, at: Any) -> tuple[Tensor, Tensor]:
        from torchaudio.compliance.kaldi import fbank

        samples, image = super().__getitem__(at)
        sound = samples / 32768
        log_mel = fbank((sound - sound.mean())[None], **FBANK)
        return torch.nn.functional.pad(log_mel, (0, 0, 0, AUDIO_FRAMES - len(log_mel))), image


def _ours(folder: Path, workers: int) -> DataLoader:
    """Our loader, as a training run on one GPU opens it."""
    cfg = DataConfig(train=str(folder), workers=workers)
    clips = ClipStream(cfg, InputSpec(log_mel_frames=1024), EpochShape(1, 1, 1, BATCH), host=0, local_rank=0, seed=0)
    return training_loader(clips, cfg, torch.device("cpu"))


def _stock(kind: type[StockClips], folder: Path, workers: int) -> DataLoader:
    clips = kind(local=str(folder), batch_size=BATCH, shuffle=True)
    return StreamingDataLoader(
        clips, batch_size=BATCH, num_workers=workers, prefetch_factor=PREFETCH if workers else None
    )


WAYS: dict[str, tuple[str, Callable[[Path, int], DataLoader]]] = {
    "ours, PCM16": ("pcm16", _ours),
    "ours, FLAC": ("flac", _ours),
    "streaming alone": ("stock", partial(_stock, StockClips)),
    "streaming alone, log-mel on the CPU": ("stock", partial(_stock, StockClipsWithLogMel)),
}
"""Name -> the data set it reads, and who opens its loader. All but the last leave the log-mel to the GPU."""


def loader_costs(folders: dict[str, Path], workers: list[int], rounds: int) -> dict[tuple[str, int], LoaderCost]:
    """Medians for each way and number of workers; all take turns."""
    found: dict[tuple[str, int], list[LoaderCost]] = {}
    for _ in range(rounds):
        for count in workers:
            for way, (kind, opened) in WAYS.items():
                cost = _cost(opened(folders[kind], count))
                found.setdefault((way, count), []).append(cost)
                gc.collect()  # streaming's shared memory goes with the data set
    return {key: LoaderCost(*(median(values) for values in zip(*costs, strict=True))) for key, costs in found.items()}


def least_clips(workers: int) -> int:
    """The smallest data set that one pass tells something of."""
    return BATCH * (2 + 2 * PREFETCH * workers)


def _cost(loader: DataLoader) -> LoaderCost:
    """One pass over the data without its ends: workers are as far ahead when the clock stops as when it starts."""
    ahead = PREFETCH * loader.num_workers
    batches, counted = iter(loader), len(loader.dataset) // BATCH - 1 - 2 * ahead  # type: ignore[arg-type]
    for _ in islice(batches, 1 + ahead):
        pass
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    worker_s, main_s, wall_s = _cpu(workers), time.process_time(), time.perf_counter()
    given = BATCH * sum(1 for _ in islice(batches, counted))
    worker_s, main_s, wall_s = _cpu(workers) - worker_s, time.process_time() - main_s, time.perf_counter() - wall_s
    return LoaderCost(1000 * worker_s / given, 1000 * main_s / given, given / wall_s)


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)

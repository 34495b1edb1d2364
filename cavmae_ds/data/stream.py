"""Shards to micro-batches: MosaicML streaming fetches and caches, our order decides, workers decode what is needed."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cavmae_ds.clip_random import frame_choice
from cavmae_ds.config import DataConfig
from cavmae_ds.data.order import EpochShape, epoch_order, rank_micro_batches
from cavmae_ds.data.schema import FRAMES_PER_CLIP, audio_of, frame_of, labels_of
from cavmae_ds.errors import DataError

log = logging.getLogger(__name__)

MIDDLE_FRAME = FRAMES_PER_CLIP // 2
"""The frame that evaluation looks at (spec/cav-mae.md 3.6)."""

MOST_BAD_NEIGHBOURS = 8
"""So many damaged records in a row are no accident: the shard is bad."""


class ShardError(DataError):
    """Not one clip is damaged but a whole shard is missing: nothing stands in for that."""


class Clip(NamedTuple):
    """One decoded clip; `bad` names what had to be replaced to fill its place, or is empty."""

    clip_index: int
    epoch: int
    audio: NDArray[np.int16]  # [n] 16 kHz mono
    image: NDArray[np.uint8]  # [H, W, 3]
    labels: NDArray[np.int32]
    bad: str


class Batch(NamedTuple):
    """A micro-batch of B clips as the workers hand it over, in the sizes it is stored in."""

    clip_index: Tensor  # [B] int64, place of the clip in the data set
    epoch: Tensor  # [B] int64
    audio: Tensor  # [B, N] int16, zeros after the clip's end
    n_samples: Tensor  # [B] int64
    images: Tensor  # [B, 3, H, W] uint8
    labels: list[list[int]]  # class ids of each clip
    bad: list[str]  # one line for each clip that could not be decoded


class ClipStream(StreamingDataset):
    """Training clips without end, epoch after epoch, from a given optimizer step on.

    Streaming's own partitioning is replaced by data.order: position is then a plain step number, kept by whoever
    trains, and nothing about it lives in shared memory.
    """

    def __init__(
        self, cfg: DataConfig, shape: EpochShape, *, host: int, local_rank: int, seed: int, first_step: int = 0
    ):
        """Clips of data.train from optimizer step first_step on (0-based, over all epochs), for one rank of a host."""
        super().__init__(
            **_places(cfg.train, cfg.cache), batch_size=shape.micro_batch, predownload=8 * shape.micro_batch
        )
        self._cfg, self._shape, self._seed = cfg, shape, seed
        self._host, self._local_rank = host, local_rank
        self._failure: BaseException | None = None
        self._first_step = first_step
        self._epoch = 0
        usable = self.num_samples - self.num_samples % cfg.canonical_nodes
        self.steps_per_epoch = usable // shape.global_batch

    def __iter__(self) -> Iterator[Any]:
        """This worker's clips. Raises DataError when streaming stops early, which it does without an exception."""
        for epoch in itertools.count(self._first_step // self.steps_per_epoch):
            self._epoch = epoch
            given = 0
            try:
                for clip in super().__iter__():
                    given += 1
                    yield clip
            except RuntimeError:  # streaming noticed that one of its threads has failed
                if self._failure is None:
                    raise
            if given < self._expected:
                reason = self._failure or "streaming gave no reason"
                raise DataError(f"epoch {epoch} ended after {given} of {self._expected} clips: {reason}")

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard if it is not here. Raises ShardError naming it."""
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:  # whatever the downloader of this kind of address raises
            # Streaming would leave "being fetched" behind and let every other worker wait for ever; told that it is
            # here, each looks for itself (spec/data-path.md 6, fault 3).
            self._shard_states[shard_id] = _ShardState.LOCAL
            name = self.shards[shard_id].file_pairs[0][0].basename
            raise ShardError(f"shard {name!r} of {self._cfg.train!r} could not be read ({error})") from error

    def on_exception(self, future: Future) -> None:
        """One of streaming's threads has ended: keep what it died of for __iter__ to tell, and wake the others."""
        if failure := future.exception():
            self._failure = failure
            self._event.set()

    def _resume_incr_epoch(self) -> tuple[int, int]:
        # Called by StreamingDataset.__iter__: position is ours, the shared-memory counter is not used.
        return self._epoch, 0

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        # Called by StreamingDataset.__iter__ for the ids this worker reads and prefetches, in order.
        order = epoch_order(
            self.samples_per_shard,
            seed=self._seed,
            epoch=epoch,
            shuffle=self._cfg.shuffle,
            block=self._cfg.shuffle_block,
            canonical_nodes=self._cfg.canonical_nodes,
        )
        micro_batches = rank_micro_batches(order, self._shape, self._host, self._local_rank)
        # The loader takes a micro-batch from each worker in turn, counted from where this iteration began.
        counted = np.arange(len(micro_batches)) + epoch * len(micro_batches)
        since_start = counted - self._first_step * self._shape.accumulation
        worker, workers = self._unique_worker_world.worker_of_rank, self._unique_worker_world.workers_per_rank
        mine = (since_start >= 0) & (since_start % workers == worker)
        work = micro_batches[mine].reshape(-1)
        self._expected = len(work)
        return work

    def __getitem__(self, at: Any) -> Any:
        """The clip at one place of the data set, its frame chosen by (seed, epoch, place).

        Where a record is damaged its neighbour takes the place, the same one on every world; the loss is counted and
        named.
        """
        bad = ""
        for step in range(1 + MOST_BAD_NEIGHBOURS):
            index = (int(at) + step) % self.num_samples
            try:
                sample = super().__getitem__(index)
                frame = frame_choice(self._seed, self._epoch, index, FRAMES_PER_CLIP)
                return decode_clip(sample, clip_index=index, epoch=self._epoch, frame=frame, bad=bad)
            except ShardError:
                raise
            except DataError as error:
                bad = bad or str(error)
        raise DataError(f"{bad}; and so are the {MOST_BAD_NEIGHBOURS} clips after it")


class EvaluationClips(Dataset):
    """Every clip once, in the order of the data set, its middle frame: for evaluation."""

    def __init__(self, address: str, cache: Path | None):
        self._shards = StreamingDataset(**_places(address, cache), batch_size=1)

    def __len__(self) -> int:
        return self._shards.num_samples

    def __getitem__(self, index: int) -> Clip:
        return decode_clip(self._shards[index], clip_index=index, epoch=0, frame=MIDDLE_FRAME)


def decode_clip(sample: Mapping[str, Any], *, clip_index: int, epoch: int, frame: int, bad: str = "") -> Clip:
    """A record's sound and one of its frames. Raises DataError, naming the clip, if the record is damaged."""
    return Clip(clip_index, epoch, audio_of(sample), frame_of(sample, frame), labels_of(sample), bad)


def collate(clips: Sequence[Clip]) -> Batch:
    """Stack clips; sounds are padded with zeros to the longest."""
    longest = max(len(clip.audio) for clip in clips)
    audio = np.zeros((len(clips), longest), dtype=np.int16)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip.audio)] = clip.audio
    images = np.stack([clip.image for clip in clips])  # [B, H, W, 3]
    return Batch(
        clip_index=torch.tensor([clip.clip_index for clip in clips]),
        epoch=torch.tensor([clip.epoch for clip in clips]),
        audio=torch.from_numpy(audio),
        n_samples=torch.tensor([len(clip.audio) for clip in clips]),
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=[clip.labels.tolist() for clip in clips],
        bad=[clip.bad for clip in clips if clip.bad],
    )


def training_loader(clips: ClipStream, cfg: DataConfig, device: torch.device) -> DataLoader:
    """Micro-batches of `clips`; pinned memory where the device is a GPU; a silent worker ends in an error."""
    return DataLoader(
        clips,
        batch_size=clips.batch_size,
        num_workers=cfg.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        timeout=cfg.timeout_seconds if cfg.workers else 0,
        prefetch_factor=2 if cfg.workers else None,
    )


def micro_batches(loader: DataLoader) -> Iterator[Batch]:
    """What the loader gives; what goes wrong in a worker comes out as the sentence it began as, or as a DataError."""
    try:
        yield from loader
    except DataError as error:  # torch put the worker's whole traceback into the message
        sentence = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
        raise DataError(sentence) from error
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise DataError(
            f"no batch came within data.timeout_seconds = {loader.timeout:g}; is the storage of the shards alive?"
        ) from error


def _places(address: str, cache: Path | None) -> dict[str, Any]:
    """Where streaming looks: a local folder is read in place; a bucket is fetched into the cache and verified.

    Each address has a folder of its own in the chosen cache, or else in the temporary folder: evaluation must never
    find the training set's shards.
    """
    if "://" not in address:
        return {"remote": None, "local": address}
    own = f"cavmae-shards-{sha256(address.encode()).hexdigest()[:16]}"
    return {"remote": address, "local": str((cache or Path(tempfile.gettempdir())) / own), "validate_hash": "xxh3_64"}

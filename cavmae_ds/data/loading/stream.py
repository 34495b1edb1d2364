"""Shards to micro-batches: our order decides, the shard cache fetches, workers decode what is needed."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.clips import BadClip, Clip, collate, decode_clip
from cavmae_ds.data.format.schema import Damage, labels_of
from cavmae_ds.data.format.shard_file import Contents, Select, Selection
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.download import BadShard, ShardError
from cavmae_ds.data.loading.handover import PREFETCHED, check_temporary_folder, worker_context
from cavmae_ds.data.loading.order import ClipOrder, EpochShape, rank_micro_batches, steps_per_epoch
from cavmae_ds.data.loading.selection import MIDDLE_POSITION, evaluation_selection, training_selection
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.data.loading.sources import training_sources
from cavmae_ds.data.transforms.augment import draw_partner
from cavmae_ds.distributed.per_sample_rng import Stream, frame_choice
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.fault_tolerance.process_tree import stay_with_rank

MOST_REPLACEMENTS = 8
"""So many damaged records or shards in a row are no accident."""

PREDOWNLOAD_BATCHES = 8


class ClipStream(ShardCache):
    """Training clips without end, epoch after epoch, from a given optimizer step on.

    Streaming's own partitioning is replaced by data.order: position is then a plain step number, kept by whoever
    trains, and nothing about it lives in shared memory.
    """

    def __init__(
        self,
        cfg: DataConfig,
        inputs: InputSpec,
        shape: EpochShape,
        *,
        host: int,
        local_rank: int,
        seed: int,
        first_step: int = 0,
        mixup: float = 0.0,
    ):
        """Clips of the training sources from optimizer step first_step on (0-based, over all epochs), for one rank.

        inputs: what is read of a clip. mixup: the share of them that come with a partner to be mixed with. Built by all
        ranks together. Raises DataError or ConfigError as training_sources does.
        """
        if mixup and inputs.frame_fit == "whole":
            raise ConfigError("augment.mixup must be 0 for a model that reads whole frames: their shapes differ")
        super().__init__([source.remote for source in cfg.all_sources], cfg, batch_size=shape.micro_batch)
        firsts = self.shard_offset_per_stream[1:]
        sources = training_sources(cfg, np.split(self.samples_per_shard, firsts))
        self.order = ClipOrder(sources, seed, cfg.shuffle, cfg.shuffle_block, cfg.canonical_nodes)
        self._cfg, self._inputs, self._shape, self._seed = cfg, inputs, shape, seed
        self._host, self._local_rank = host, local_rank
        self._first_step, self._mixup = first_step, mixup
        self._trained = np.concatenate([source.trained for source in sources])
        epoch_clips = sum(source.epoch_clips for source in sources)
        self.steps_per_epoch = steps_per_epoch(epoch_clips, cfg.canonical_nodes, shape.global_batch)

    def __iter__(self) -> Iterator[Any]:
        """This worker's clips. Raises DataError for what cannot be read."""
        world = self._unique_rank_world.detect_workers()
        predownload = self._cfg.predownload or PREDOWNLOAD_BATCHES * self._shape.micro_batch
        for epoch in itertools.count(self._first_step // self.steps_per_epoch):
            work = self._work(epoch, world.worker_of_rank, world.workers_per_rank)
            ahead = _Ahead(self, work[:, 0], predownload)
            try:
                for number, (place, turn) in enumerate(work.tolist()):
                    ahead.reach(number)
                    yield self.clip(place, turn)
            finally:
                ahead.stop()

    def _work(self, epoch: int, worker: int, workers: int) -> NDArray[np.int64]:
        """Places and turns, [n, 2], of the clips that one of the rank's workers gives in an epoch."""
        micro_batches = rank_micro_batches(
            self.order, epoch, self.steps_per_epoch, self._shape, self._host, self._local_rank
        )
        # The loader takes a micro-batch from each worker in turn, counted from where this iteration began.
        counted = np.arange(len(micro_batches)) + epoch * len(micro_batches)
        since_start = counted - self._first_step * self._shape.accumulation
        mine = (since_start >= 0) & (since_start % workers == worker)
        return micro_batches[mine].reshape(-1, 2)

    def clip(self, place: int, turn: int) -> Clip:
        """The clip at one place of the data, its frames chosen by (seed, turn, place); perhaps with a partner.

        Where a record is damaged its neighbour takes the place, where a shard is, the clip as far into the next shard:
        the same one on every world; the loss is counted and named. With data.on_bad_clip = fail nothing stands in.
        """
        clip = self._readable(place, turn, Stream.FRAME)
        drawn = draw_partner(self._seed, turn, clip.clip_index, self._mixup, self.num_samples) if self._mixup else None
        if drawn is None:
            return clip
        # Its own frame, though in this clip's turn: how often the partner came before is not known here.
        partner = self._readable(self._next_trained(drawn.place), turn, Stream.PARTNER_FRAME)
        return clip._replace(partner=partner, share=drawn.share)

    def _readable(self, place: int, turn: int, frame_stream: Stream) -> Clip:
        at, bad = place, None
        for _ in range(1 + MOST_REPLACEMENTS):
            try:
                sample = self.selected(at, self._selection(turn, at, frame_stream))
                return decode_clip(sample, self._inputs, clip_index=at, epoch=turn, bad=bad)
            except ShardError:
                raise
            except DataError as error:
                if self._cfg.on_bad_clip == "fail":
                    raise DataError(f"{error} (data.on_bad_clip is fail)") from error
                bad = bad or BadClip(getattr(error, "damage", Damage.RECORD), str(error))
                at = self._replacement(at, whole_shard=isinstance(error, BadShard))
        assert bad is not None
        raise DataError(f"{bad.line}; and so are the {MOST_REPLACEMENTS} after it")

    def _selection(self, turn: int, at: int, frame_stream: Stream) -> Select:
        draw = partial(frame_choice, self._seed, turn, at, stream=frame_stream)
        return lambda contents: training_selection(self._inputs, contents, draw)

    def _replacement(self, at: int, whole_shard: bool) -> int:
        """The next place that may be trained on: in the next shard, or the next one at all."""
        if whole_shard:
            shard, place = self.spanner[at]
            following = (shard + 1) % self.num_shards
            at = int(self.sample_offset_per_shard[following] + place % self.samples_per_shard[following])
        else:
            at = (at + 1) % self.num_samples
        return self._next_trained(at)

    def _next_trained(self, at: int) -> int:
        """This place, or the first one after it that may be trained on."""
        while not self._trained[at]:
            at = (at + 1) % self.num_samples
        return at


class _Ahead:
    """Fetches the shards of the coming clips while the clips before them are given, on a thread of its own."""

    def __init__(self, shards: ShardCache, places: NDArray[np.int64], clips: int):
        self._shards, self._clips = shards, clips
        shard = np.searchsorted(np.cumsum(shards.samples_per_shard), places, side="right")
        self._wanted, self._first_use = np.unique(shard, return_index=True)
        self._reached = 0
        self._stopped = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def reach(self, number: int) -> None:
        """The clip of this number is asked for."""
        with self._moved:
            self._reached = number
            self._moved.notify()

    def stop(self) -> None:
        """No more shards are wanted; one that is being fetched still comes."""
        with self._moved:
            self._stopped = True
            self._moved.notify()

    def _run(self) -> None:
        for use in np.argsort(self._first_use):
            with self._moved:
                while not self._stopped and self._first_use[use] > self._reached + self._clips:
                    self._moved.wait()
                if self._stopped:
                    return
            try:
                self._shards.prepare_shard(int(self._wanted[use]), blocking=False)
            except ShardError:
                return  # whoever asks for one of its clips hears of it


class EvaluationClips(Dataset):
    """Every clip once, in the order of the data, seen in its middle or elsewhere: for evaluation and validation."""

    def __init__(
        self, address: str | Sequence[str], inputs: InputSpec, cache: Path | None = None, data: DataConfig | None = None
    ):
        """What a model reads of the clips of one or more addresses; `data` says how they are fetched.

        Built by all ranks together.
        """
        addresses = [address] if isinstance(address, str) else address
        self._shards = ShardCache(addresses, data or DataConfig(cache=cache))
        self._inputs, self._position = inputs, MIDDLE_POSITION

    def at_position(self, position: int) -> EvaluationClips:
        """The same clips, each seen at this one of the positions of evaluation_selection (from 0)."""
        other = copy.copy(self)
        other._position = position
        return other

    @property
    def clips_by_address(self) -> NDArray[np.int64]:
        """Clips of each address, in order."""
        return self._shards.samples_per_stream

    def name_and_labels(self, index: int) -> tuple[str, list[int]]:
        """The id of a clip and its class ids, without decoding it. Raises DataError if its record is damaged."""
        sample = self._shards.selected(index, lambda _: Selection((), 0, 0))
        return sample["clip_id"], labels_of(sample).tolist()

    def __len__(self) -> int:
        return self._shards.num_samples

    def __getitem__(self, index: int) -> Clip:
        sample = self._shards.selected(index, self._selection)
        return decode_clip(sample, self._inputs, clip_index=index, epoch=0)

    def _selection(self, contents: Contents) -> Selection:
        return evaluation_selection(self._inputs, contents, self._position)


def training_loader(clips: ClipStream, cfg: DataConfig, device: torch.device) -> DataLoader:
    """Micro-batches of `clips`; see clip_loader."""
    return clip_loader(clips, cfg, device, batch_size=clips.batch_size)


def clip_loader(clips: Dataset, cfg: DataConfig, device: torch.device, **batching: Any) -> DataLoader:
    """Batches of `clips`; pinned memory where the device is a GPU; a silent worker ends in an error.

    Raises ConfigError as check_temporary_folder does.
    """
    check_temporary_folder(cfg.workers)
    return DataLoader(
        clips,
        num_workers=cfg.workers,
        worker_init_fn=stay_with_rank,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        timeout=cfg.timeout_seconds if cfg.workers else 0,
        prefetch_factor=PREFETCHED if cfg.workers else None,
        multiprocessing_context=worker_context(cfg.workers),
        **batching,
    )

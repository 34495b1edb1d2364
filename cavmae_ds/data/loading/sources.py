"""Several data sets as one: how many clips each gives to an epoch, and which of them are never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.balance import read_sample_weights
from cavmae_ds.data.loading.order import Source, shares
from cavmae_ds.data.storage import open_store
from cavmae_ds.distributed.per_sample_rng import Stream, clip_uniform
from cavmae_ds.errors import ConfigError, DataError

HELD_OUT_SEED = 0
"""The split does not follow train.seed: runs with other seeds are compared on the same clips."""


def training_sources(data: DataConfig, shard_sizes: Sequence[NDArray[np.int64]]) -> list[Source]:
    """What the order has to know of each source, given the clips in each of its shards, int64 [S].

    Raises ConfigError or DataError for a source that gives no clip to an epoch, has fewer clips than stripes, or has
    no weights for balanced sampling.
    """
    clips = [int(sizes.sum()) for sizes in shard_sizes]
    firsts = [sum(clips[:number]) for number in range(len(clips))]
    trained = [~held_out(first, count, data.validation_share) for first, count in zip(firsts, clips, strict=True)]
    given = epoch_clips(data, [int(mask.sum()) for mask in trained])
    sources = []
    for number, entry in enumerate(data.all_sources):
        weights = None
        if data.sampling == "balanced":
            weights = read_sample_weights(open_store(entry.remote, data.answer_timeout_s), clips[number])
        source = Source(firsts[number], shard_sizes[number], given[number], trained[number], weights)
        if np.count_nonzero(source.chances) < data.canonical_nodes:
            raise DataError(
                f"{entry.remote!r} has {np.count_nonzero(source.chances)} clips to train on, fewer than "
                f"data.canonical_nodes = {data.canonical_nodes}; lower that or prepare more clips"
            )
        sources.append(source)
    return sources


def epoch_clips(data: DataConfig, clips: Sequence[int]) -> list[int]:
    """How many clips each source gives to an epoch, when it has so many to train on. Raises ConfigError for none."""
    sources = data.all_sources
    match data.mixing:
        case "repeat":
            given = [round((entry.repeat or 1) * count) for entry, count in zip(sources, clips, strict=True)]
        case "choose":
            given = [entry.choose or 0 for entry in sources]
        case "proportion":
            given = shares(data.epoch_clips or sum(clips), [Fraction(entry.proportion or 0) for entry in sources])
    if len(sources) == 1 and data.epoch_clips:
        given = [data.epoch_clips]
    for entry, count in zip(sources, given, strict=True):
        if count < data.canonical_nodes:
            raise ConfigError(
                f"data.sources: {entry.remote!r} would give {count} clips to an epoch, at least data.canonical_nodes = "
                f"{data.canonical_nodes} are needed; raise its {data.mixing} or data.epoch_clips"
            )
    return given


def held_out(first_clip: int, clips: int, share: float) -> NDArray[np.bool_]:
    """[clips] True for the clips that are kept for validation: a draw of each clip's own against `share`."""
    if not share:
        return np.zeros(clips, bool)
    index = torch.arange(first_clip, first_clip + clips)
    drawn = clip_uniform(HELD_OUT_SEED, 0, index, Stream.HELD_OUT, 1)[:, 0]  # [clips]
    return (drawn < share).numpy()

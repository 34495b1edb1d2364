"""What is known of a data set before any shard is read: its index and its manifest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.index import INDEX, read_index
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import ConfigError, DataError

CACHED_SHARDS = 4
"""A cache holds at least so many of the largest shard: some are read while others are fetched."""


def check_shards(
    address: str, frame_size: int | None, data: DataConfig | None = None, *, reads_audio: bool = True
) -> NDArray[np.int64]:
    """Clips in each shard of the data set at a folder or s3:// address, which a model is to read.

    frame_size: pixels of the model's square frames, None if it reads none: the shards hold square cuts of this size, or
    whole frames that are no smaller. reads_audio: every clip must have sound. `data` says how long to wait for an
    answer and what the cache may hold. Raises DataError: not there, unreachable, damaged, holding frames of another
    size, or clips that lack what the model reads; ConfigError: data.cache_limit_gib too small.
    """
    data = data or DataConfig()
    store = open_store(address, data.answer_timeout_s)
    shards = read_index(store.get_bytes(INDEX), address).shards
    clips = np.array([shard.samples for shard in shards], np.int64)
    largest = max(shard.raw_data.bytes for shard in shards)
    if data.cache_limit_gib and "://" in address and data.cache_limit_gib * 2**30 < CACHED_SHARDS * largest:
        raise ConfigError(
            f"data.cache_limit_gib must hold {CACHED_SHARDS} of the largest shard of {address!r} "
            f"({largest / 2**30:.3g} GiB), got {data.cache_limit_gib:g}; give at least "
            f"{np.ceil(CACHED_SHARDS * largest / 2**20) / 2**10:.6g}, better as much as the disk has"
        )
    manifest = read_manifest(address, data)
    if manifest.clips != clips.sum():
        raise DataError(
            f"manifest.json in {address!r} says {manifest.clips} clips, {INDEX} {clips.sum()}: one of them is damaged; "
            "prepare the data set again"
        )
    if frame_size is not None:
        _check_frames(address, manifest, frame_size)
    if reads_audio and manifest.clips_without_audio:
        raise DataError(
            f"{manifest.clips_without_audio} of {manifest.clips} clips in {address!r} have no sound, which the model "
            "reads; prepare the videos again with --require audio or both"
        )
    return clips


def _check_frames(address: str, manifest: Manifest, frame_size: int) -> None:
    if manifest.clips_without_frames:
        raise DataError(
            f"{manifest.clips_without_frames} of {manifest.clips} clips in {address!r} have no frames, which the model "
            "reads; prepare the videos again with --require video or both"
        )
    if manifest.short_side is not None and manifest.short_side < frame_size:
        raise DataError(
            f"the shards in {address!r} hold whole frames whose short side is {manifest.short_side} pixels, "
            f"model.image_size is {frame_size}; prepare them with --short-side {frame_size} or more, or change "
            "model.image_size"
        )
    if manifest.short_side is None and manifest.frame_size != frame_size:
        raise DataError(
            f"the shards in {address!r} hold frames of {manifest.frame_size} pixels, model.image_size is {frame_size}; "
            f"prepare them with --frame-size {frame_size} or change model.image_size"
        )


def read_manifest(address: str, data: DataConfig) -> Manifest:
    """What the data set says of itself. Raises DataError: not there, unreachable, damaged."""
    return Manifest.read(open_store(address, data.answer_timeout_s).get_bytes("manifest.json"))

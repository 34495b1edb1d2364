"""What is known of a data set before any shard is read: its index and its manifest."""

from __future__ import annotations

import json

from cavmae_ds.config import ModelConfig
from cavmae_ds.data.schema import Manifest
from cavmae_ds.data.store import open_store
from cavmae_ds.errors import DataError


def check_shards(address: str, model: ModelConfig) -> int:
    """Clips in the data set at a folder or s3:// address, which must fit the model.

    Raises DataError: not there, unreachable, damaged, or holding frames of another size.
    """
    store = open_store(address)
    try:
        shards = json.loads(store.get_bytes("index.json"))["shards"]
        clips = sum(shard["samples"] for shard in shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"index.json in {address!r} is damaged ({error}); prepare the data set again") from error
    frame_size = Manifest.read(store.get_bytes("manifest.json")).frame_size
    if frame_size != model.image_size:
        raise DataError(
            f"the shards in {address!r} hold frames of {frame_size} pixels, model.image_size is {model.image_size}; "
            f"prepare them with --frame-size {model.image_size} or change model.image_size"
        )
    return clips

"""By what a data set is known, wherever it lies: its clips and how they lie in shards, which decide their order."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.storage import open_store

DIGITS = 12


def fingerprint(address: str, data: DataConfig, weights: NDArray[np.float64] | None) -> str:
    """Of the shards that index.json lists at a folder or s3:// address: samples, bytes and hashes, not names.

    weights: float64 [n] by which the clips are drawn, if they are. The index must have passed check_shards.
    """
    index = json.loads(open_store(address, data.answer_timeout_s).get_bytes("index.json"))
    shards = [
        [shard["samples"], shard["raw_data"]["bytes"], sorted((shard["raw_data"].get("hashes") or {}).items())]
        for shard in index["shards"]
    ]
    digest = sha256(json.dumps(shards).encode())
    if weights is not None:
        digest.update(weights.tobytes())
    return digest.hexdigest()[:DIGITS]

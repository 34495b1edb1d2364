"""A process with a data set open: reads a clip, says its number, waits for a line on its input, reads on and ends."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.loading.shard_cache import ShardCache

if __name__ == "__main__":
    shards = ShardCache([sys.argv[1]], DataConfig())
    print(shards[0] and shards._shm_prefix_int, flush=True)  # noqa: T201
    sys.stdin.readline()
    print(shards[1]["clip_id"], flush=True)  # noqa: T201

"""What it costs to prepare videos, and to move shards to and from an S3 server on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.turns import cpu_seconds, take_turns
from cavmae_ds.data.schema import AudioCodec

INPUTS = 48  # the videos are prepared again and again, under other names

Found = tuple[str, float | None, float | None, float | None, float | None, str]
"""Way, CPU ms a clip, ratio to the first, clips a second and core, clips or MB a second of wall time, note."""


def preparation(videos: Path, folder: Path, rounds: int) -> Iterator[Found]:
    """One decoding process: videos to shards with PCM16 and with FLAC."""
    from cavmae_ds.data.prepare import prepare
    from cavmae_ds.data.settings import PrepareSettings

    files = sorted(path for path in videos.iterdir() if path.is_file())
    (folder / "videos").mkdir()
    for number in range(INPUTS):
        video = files[number % len(files)]
        (folder / "videos" / f"{number:04d}-{video.name}").symlink_to(video.resolve())
    reports: dict[str, dict[str, Any]] = {}

    def build(codec: AudioCodec) -> None:
        out = folder / f"prepared-{codec}-{time.monotonic_ns()}"
        prepare(folder / "videos", out, PrepareSettings(audio_codec=codec), workers=1)
        reports[codec] = json.loads((out / "report.json").read_bytes())

    codecs: tuple[AudioCodec, ...] = ("pcm16", "flac")
    spent = take_turns({codec: partial(build, codec) for codec in codecs}, rounds)
    first = spent["pcm16"].cpu_s
    for codec, took in spent.items():
        clips, seconds, size = (reports[codec][name] for name in ("clips", "seconds", "bytes"))
        note = (
            f"{clips} clips of {len(files)} videos; {seconds / clips:.1f} s of sound, {size / clips / 1e3:.0f} kB each"
        )
        yield codec, 1000 * took.cpu_s / clips, took.cpu_s / first, clips / took.cpu_s, clips / took.wall_s, note


def s3_rates(shards: Path, folder: Path) -> Iterator[Found]:
    """Megabytes a second of wall time to and from SeaweedFS, which shares the cores."""
    from cavmae_ds.config import DataConfig
    from cavmae_ds.data.shard_cache import ShardCache
    from cavmae_ds.data.store import open_store
    from tests.s3_server import running_s3_server

    folder.mkdir()
    with running_s3_server(folder) as server:
        os.environ.update(server.environment)
        bucket, part = f"s3://{server.fresh_bucket()}", "part-00000"
        megabytes = sum(path.stat().st_size for path in shards.iterdir()) / 1e6
        store = open_store(bucket)
        cpu_s, wall_s = cpu_seconds(), time.perf_counter()
        store.put_folder(part, shards, last="index.json")
        yield _moved("to the server, as prepare publishes", megabytes, cpu_seconds() - cpu_s, wall_s)

        address = f"{bucket}/{part}"
        cache = ShardCache([address], DataConfig(train=address, cache=folder / "cache"))
        cpu_s, wall_s = cpu_seconds(), time.perf_counter()
        for shard in range(cache.num_shards):
            cache.prepare_shard(shard)
        yield _moved("from the server, as training fetches", megabytes, cpu_seconds() - cpu_s, wall_s)


def _moved(way: str, megabytes: float, cpu_s: float, began: float) -> Found:
    wall_s = time.perf_counter() - began
    note = f"MB/s of {megabytes:.0f} MB; {1000 * cpu_s / megabytes:.1f} s of the client's CPU a GB"
    return way, None, None, None, megabytes / wall_s, note

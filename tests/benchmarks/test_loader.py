"""What the loader benchmark says and counts; its numbers are the machine's, its arithmetic is checked here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.loader import for_one_h200, main, rows_of
from benchmarks.loaders import WAYS, LoaderCost, least_clips
from benchmarks.material import records
from benchmarks.turns import Spent, take_turns
from cavmae_ds.data.format.schema import FRAMES_PER_CLIP, decode_frame


def test_ways_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []
    spent = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert spent.keys() == {"a", "b"} and all(took.wall_s >= 0 for took in spent.values())


def test_costs_are_per_clip_and_compared_with_the_first_way():
    plain, quick = rows_of("read", {"plain": Spent(0.4, 0.8), "quick": Spent(0.1, 0.2)}, clips=100)
    assert (plain.cpu_ms, plain.ratio, plain.per_second_per_core, plain.wall_per_second) == (4.0, 1.0, 250.0, 125.0)
    assert (quick.cpu_ms, quick.ratio, quick.per_second_per_core, quick.wall_per_second) == (1.0, 0.25, 1000.0, 500.0)


def test_what_follows_for_a_gpu_comes_from_the_largest_number_of_workers_and_is_marked():
    costs = {(way, workers): LoaderCost(1.0 * workers, 0.1, 500) for way in WAYS for workers in (0, 1, 2)}
    first = for_one_h200(costs)[0]
    assert first.startswith("[E] ours, PCM16: 2,000 clips/s x 2.00 ms = 4.0 cores for workers, x 0.10 ms = 0.2 for")
    assert first.endswith("at most 6,000 clips/s")
    limited_by_main = {(way, 1): LoaderCost(0.5, 0.2, 500) for way in WAYS}
    assert for_one_h200(limited_by_main)[0].endswith("at most 5,000 clips/s")
    assert for_one_h200({(way, 0): LoaderCost(0.0, 1.0, 500) for way in WAYS}) == []  # no worker, nothing to say


def test_the_clips_are_as_large_as_the_specification_says_real_ones_are():
    clips = list(records(6))
    sizes = [sum(map(len, clip.frames)) for clip in clips]
    assert np.mean(sizes) == pytest.approx(128e3, rel=0.1)  # spec/data-path.md 4
    flac = [len(clip.to_mds("flac")["audio"]) / len(clip.to_mds()["audio"]) for clip in clips]
    assert np.mean(flac) == pytest.approx(0.57, abs=0.02)  # spec/data-path.md 3
    assert decode_frame(clips[0].frames[0]).shape == (224, 224, 3)
    assert len(set(clips[0].frames)) == FRAMES_PER_CLIP


def test_a_small_run_writes_every_row_with_its_circumstances(tmp_path, capsys):
    out = tmp_path / "loader.json"
    assert main(["--clips", str(least_clips(0)), "--workers", "0", "--rounds", "1", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document["clips"] == least_clips(0) and document["cores"] >= 1 and document["cpu"] and document["commit"]
    sections = {row["section"] for row in document["rows"]}
    assert sections == {"read", "decode a frame", "decode sound", "collate", "log-mel", "loader"}
    assert all(row["cpu_ms"] > 0 for row in document["rows"])
    captured = capsys.readouterr()
    assert "ours, FLAC, 0 workers" in captured.out and "writing" in captured.err


def test_too_few_clips_for_the_workers_are_refused_with_the_number_that_is_enough(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--clips", "100", "--workers", "2"])
    assert stopped.value.code == 2
    assert "--clips must be at least 320 for 2 workers, got 100" in capsys.readouterr().err

"""The digits benchmark: its arithmetic, and all of it on a few clips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import digits_runs
from benchmarks.digits import STEPS_PER_MINUTE, main
from benchmarks.digits_look import Clips, explained, probes, retrieval
from benchmarks.digits_report import floors, tables
from benchmarks.digits_runs import MODES
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.shards import read_manifest
from tests.data.official_files import write_recordings
from tests.ranks import fork_ranks


def test_floors_are_what_a_perfect_knower_of_a_factor_would_pay():
    """Against a draw of batches: with probability 1 / n for each of the n clips of a class, the loss is ln n."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.arange(2700) % 10
    costs = []
    for _ in range(300):
        batch = classes[torch.randperm(2700, generator=draw)[:108]]
        costs.append((batch == batch[:, None]).sum(1).double().log().mean())
    found = floors(108)
    assert found["digit"] == pytest.approx(float(torch.stack(costs).mean()), abs=0.01)
    assert found["nothing"] == math.log(108)
    assert found["both"] < found["digit"] < found["speaker"] < found["nothing"]


def test_features_that_tell_one_factor_are_found_to_tell_that_one():
    digits, speakers = torch.arange(120) % 10, torch.arange(120) % 6
    rows = torch.nn.functional.one_hot(digits, 10).float()
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(120, 10, generator=draw) / 10
    clips = Clips(rows + noise, rows, [[int(digit), 10 + int(s)] for digit, s in zip(digits, speakers, strict=True)])
    found = retrieval(clips)
    assert found["digit"]["audio_to_image"] == found["digit"]["image_to_audio"] == 1.0
    assert found["digit"]["chance"] == pytest.approx(0.1)
    assert found["speaker"]["audio_to_image"] < 0.7
    assert explained(clips.image, digits, speakers) == pytest.approx(1)
    assert explained(rows[torch.randperm(120, generator=draw)], digits, speakers) == pytest.approx(0, abs=0.15)
    assert probes(clips, clips)["digit"] == {"audio": 1.0, "image": 1.0, "both": 1.0}


def test_a_small_run_pretrains_finetunes_and_writes_results_figure_and_tables(tmp_path, monkeypatch, capfd):
    """The programs are forked instead of started, which is all that differs from the command."""

    def forked(words):
        _, script, *arguments = map(str, words)
        done = fork_ranks(1, Path(script), *arguments, scratch=tmp_path)
        assert done.returncode == 0, done.stdout

    monkeypatch.setattr(digits_runs, "command", forked)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    folders = {name: tmp_path / name for name in ("out", "results", "figures")}
    small = ["model.embed_dim=16", "train.global_batch=8"]
    recordings = write_recordings(tmp_path / "recordings")
    main(recordings, limit=24, minutes=2 / STEPS_PER_MINUTE, epochs=1, ranks=1, setting=small, **folders)
    (path,) = (tmp_path / "results").iterdir()
    document = json.loads(path.read_text())
    (run,) = document["runs"]
    assert [point["step"] for point in run["retrieval"]] == [0, 1, 2]
    for modes in run["finetuned"].values():
        assert {mode: list(found["epochs"]) for mode, found in modes.items()} == {mode: ["1"] for mode in MODES}
    printed = capfd.readouterr().out
    assert tables(document) in printed and "| digit, image to audio |" in printed
    assert (tmp_path / "figures" / "digits-speaker.png").stat().st_size < 200_000
    shards = tmp_path / "out" / "speaker-0" / "shards"
    names = [read_manifest(str(shards / split), DataConfig()).classes for split in ("train", "train-digit")]
    assert list(map(len, names)) == [16, 10]

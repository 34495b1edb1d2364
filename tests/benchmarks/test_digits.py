"""The digits benchmark: its arithmetic, and all of it on a few clips."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks.digits import CHECKOUT, MAKER, Clips, probes, retrieval
from benchmarks.digits_report import floors, tables


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
    noise = torch.randn(120, 10, generator=torch.Generator().manual_seed(0)) / 10
    clips = Clips(rows + noise, rows, [[int(digit), 10 + int(s)] for digit, s in zip(digits, speakers, strict=True)])
    found = retrieval(clips)
    assert found["digit"]["audio_to_image"] == found["digit"]["image_to_audio"] == 1.0
    assert found["digit"]["chance"] == pytest.approx(0.1)
    assert found["speaker"]["audio_to_image"] < 0.7
    assert probes(clips, clips)["digit"] == {"audio": 1.0, "image": 1.0, "both": 1.0}


@pytest.mark.skipif(not MAKER.is_file(), reason="the script that makes the digits is not here")
def test_a_small_run_writes_results_figure_and_tables(tmp_path):
    folders = {"--out": tmp_path / "runs", "--results": tmp_path / "results", "--figures": tmp_path / "images"}
    small = ["--limit=24", "--minutes=0.02", "--device=cpu", "--set=model.embed_dim=16", "--set=train.global_batch=8"]
    places = [f"{name}={folder}" for name, folder in folders.items()]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.digits", *small, *places], cwd=CHECKOUT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    document = json.loads(path.read_text())
    (run,) = document["runs"]
    assert [point["step"] for point in run["retrieval"]] == [0, 1, 2]
    assert tables(document) in done.stdout and "| digit, image to audio |" in done.stdout
    assert (tmp_path / "images" / "digits-speaker.png").stat().st_size < 150_000

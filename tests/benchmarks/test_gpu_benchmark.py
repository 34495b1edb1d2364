"""What the GPU benchmark says and counts, checked without a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import SECTIONS, Job, chosen_cases, run, steps
from benchmarks.report import Report, Row, floor_ms, mfu, rate, slug, table
from benchmarks.step import WAYS, training_step
from cavmae_ds.kernels.cases import CASES, Case
from cavmae_ds.kernels.shapes import base
from cavmae_ds.models.cavmae.config import ModelConfig

CHECKOUT = Path(__file__).parents[2]
DAY = datetime(2030, 1, 2, tzinfo=timezone.utc)
TINY_MODEL = ModelConfig(
    embed_dim=32,
    num_heads=2,
    modality_specific_depth=1,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    image_size=64,
    audio_frames=64,
    mel_bins=32,
)


def cost_per_clip(name: str):
    """Forward and backward megabytes per clip at batch 256 in bf16."""
    kernel = next(case.kernel for case in CASES if case.kernel.name == name)
    cost = Case(kernel, base(256), torch.bfloat16).cost
    return cost.forward_bytes / 256e6, cost.backward_bytes / 256e6


def test_the_byte_model_agrees_with_the_floors_of_the_specification():
    assert cost_per_clip("unshuffle") == pytest.approx((0.91, 0.91), rel=0.02)  # spec/scale.md 2c
    audio, image = cost_per_clip("masked_mse-audio"), cost_per_clip("masked_mse-image")
    assert audio[0] + image[0] == pytest.approx(1.69, rel=0.02)  # 1.83 there, with all patches' ids
    gathers = cost_per_clip("patch_gather-audio")[0] + cost_per_clip("patch_gather-image")[0]
    assert gathers == pytest.approx(128 * 256 * 6e-6 + 49 * 768 * 6e-6, rel=0.01)


def test_the_contrastive_loss_of_both_directions_costs_8_n_squared_d():
    kernel = next(case.kernel for case in CASES if case.kernel.name == "contrastive_both")
    cost = Case(kernel, base(65536, candidates=65536), torch.bfloat16).cost
    assert cost.forward_flops + cost.backward_flops == 8 * 65536**2 * 768
    floor = floor_ms(cost.forward_bytes, cost.forward_flops + cost.backward_flops, 4.3e12, 790e12)
    assert floor == pytest.approx(33.4, rel=0.01)


def test_rates_and_mfu_are_arithmetic():
    assert rate(2_000_000_000, 4_000_000_000_000, ms=2.0) == (1000.0, 2000.0)
    assert mfu(2028, 233.8e9, 790) == pytest.approx(0.60, abs=0.001)  # spec/scale.md 2


def test_the_timed_cases_are_every_kernel_once_at_batch_256_and_the_large_contrastive_ones():
    chosen = chosen_cases(CASES)
    assert {case.kernel.name for case in chosen} == {case.kernel.name for case in CASES}
    assert {case.shape.clips for case in chosen} == {256, 4096, 16384, 65536}
    assert len({case.name for case in chosen}) == len(chosen)


def test_the_file_holds_card_versions_commit_and_every_row(tmp_path):
    rows = [Row("kernel", "unshuffle", "fused", "forward", ms=0.06, share=0.9), Row("step", "x", note="out of memory")]
    report = Report("NVIDIA H200", {"torch": "2.11"}, "abc", DAY, rows)
    path = report.path_in(tmp_path / "results")
    report.save(path)
    assert path.name == "nvidia-h200-2030-01-02.json"
    assert report.path_in(tmp_path / "results").name == "nvidia-h200-2030-01-02-2.json"  # nothing is written over
    found = json.loads(path.read_text())
    assert (found["card"], found["versions"], found["commit"]) == ("NVIDIA H200", {"torch": "2.11"}, "abc")
    assert found["rows"][0] == {
        "section": "kernel",
        "name": "unshuffle",
        "implementation": "fused",
        "direction": "forward",
        "ms": 0.06,
        "share": 0.9,
    }
    assert slug("A100-SXM4-80GB (MIG)") == "a100-sxm4-80gb-mig"


def test_the_table_shows_failures_one_by_one_and_successes_as_a_count():
    rows = [Row("correctness", "a", note="ok"), Row("correctness", "b", note="loss off by 1"), Row("ceiling", "copy")]
    text = table(rows)
    assert "loss off by 1" in text and "1 of 2 cases" in text
    assert not any(line.startswith("correctness  a") for line in text.splitlines())


@pytest.fixture
def report(tmp_path, monkeypatch) -> tuple[Report, Path]:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)  # there may be no driver
    return Report("a card", {}, "abc", DAY), tmp_path / "rows.json"


def saved(path: Path) -> list[str]:
    return [f"{row['name']}: {row.get('note', row.get('ms'))}" for row in json.loads(path.read_text())["rows"]]


@pytest.mark.parametrize(
    "error", [AssertionError("dynamo"), KeyError("x"), SystemError("driver"), RuntimeError("CUDA")]
)
def test_whatever_a_job_raises_costs_its_own_rows_alone(error, report):
    def fails() -> Iterator[Row]:
        yield Row("kernel", "second", ms=2.0)
        raise error

    jobs = [
        Job(partial(Row, "kernel", "first"), lambda: [Row("kernel", "first", ms=1.0)]),
        Job(partial(Row, "kernel", "second"), fails),
        Job(partial(Row, "kernel", "third"), lambda: [Row("kernel", "third", ms=3.0)]),
    ]
    run(jobs, *report, deadline=math.inf)
    assert saved(report[1]) == ["first: 1.0", "second: 2.0", f"second: {type(error).__name__}: {error}", "third: 3.0"]


def test_each_row_is_in_the_file_before_the_next_job_begins(report):
    def killed() -> Iterator[Row]:
        raise KeyboardInterrupt

    jobs = [
        Job(partial(Row, "kernel", "first"), lambda: [Row("kernel", "first", ms=1.0)]),
        Job(partial(Row, "kernel", "second"), killed),
    ]
    with pytest.raises(KeyboardInterrupt):
        run(jobs, *report, deadline=math.inf)
    assert saved(report[1]) == ["first: 1.0"]


def test_what_is_left_out_because_the_time_is_up_has_its_row(report):
    jobs = [Job(partial(Row, "step", name), lambda: [Row("step", "never", ms=1.0)]) for name in ("a", "b")]
    run(jobs, *report, deadline=-math.inf)
    assert saved(report[1]) == ["a: left out: the time is up", "b: left out: the time is up"]


def test_the_product_is_measured_before_everything_else():
    assert SECTIONS[0] == "step" and WAYS[0] == "kernels"
    first = next(steps([256, 64], matmul=1.0)).row()
    assert (first.name, first.implementation) == ("CAV-MAE base, 256 clips", "kernels")


@pytest.mark.parametrize("way", WAYS)
def test_the_training_step_it_times_learns(way):
    """All four ways; what inductor makes of a graph is for a card to say, that there is one is dynamo's."""
    with training_step(4, way, "cpu", TINY_MODEL, backend="aot_eager") as step:
        losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_an_unknown_way_of_training_is_refused():
    assert "faster" not in WAYS
    with pytest.raises(ValueError, match="way must be one of"), training_step(4, "faster", "cpu", TINY_MODEL):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would run")
def test_without_a_gpu_it_says_so_in_one_sentence():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "benchmarks.gpu measures a GPU, and torch sees none here"

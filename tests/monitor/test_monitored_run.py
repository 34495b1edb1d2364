"""What is found in the folder of a run: curves, pictures, texts, log; on any ranks, at any ZeRO stage, after a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.cli import app
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.monitor.log import LOG, read_log
from cavmae_ds.monitor.norms import block_of
from tests.monitor.runs import run_file
from tests.ranks import PRETRAIN, fork_ranks, start_ranks

pytestmark = pytest.mark.slow

SLOW_RANK = Path(__file__).with_name("slow_rank_worker.py")


def test_the_first_rank_says_how_the_run_begins_and_what_comes_next_and_streaming_says_nothing(everything):
    said = (everything.parent / "said.txt").read_text()
    assert said.count(f"pretrain: {everything}: 24 clips, 2 ranks, ") == 1, said
    assert said.count(f"pretrain: done: {everything}/checkpoints/step-00000003; next:\n") == 1
    assert f"  cavmae evaluate {everything} --data {everything.parent / 'held'}\n" in said
    assert "predownload" not in said


def curves_of_log(run_dir: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in read_log(run_dir):
        if "event" not in entry:
            for tag in entry.keys() - {"time", "step"}:
                assert entry["step"] not in curves[tag], f"{tag} is drawn twice"
                curves[tag][entry["step"]] = entry[tag]
    return dict(curves)


def test_event_files_hold_every_curve_without_gaps_a_picture_that_decodes_and_the_texts(everything):
    events = EventAccumulator(str(everything / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()

    curves = read_curves(everything)
    for tag in ("loss/total", "optim/lr", "perf/clips_per_second", "ranks/own_seconds_max", "memory/peak_gib",
                "data/bad_clips", "norm_weight/blocks_a.0", "norm_gradient/blocks_u.0"):  # fmt: skip
        assert sorted(curves[tag]) == [1, 2, 3], tag
    assert sorted(curves["validation/total"]) == [2, 3]
    assert curves["checkpoint/failed"] == {2: 0.0, 3: 0.0} and sorted(curves["checkpoint/seconds"]) == [2, 3]
    assert sorted(curves["probe/audio_to_image_recall_at_1"]) == [3]
    pictures = events.Images("reconstructions")
    assert [picture.step for picture in pictures] == [2]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG") and pictures[0].width > 500
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]
             if tag.endswith("text_summary")}  # fmt: skip
    assert "clip_grad_norm: 0.1" in texts["run/config/text_summary"]
    assert "total_steps: 3" in texts["run/numbers/text_summary"]
    assert socket.gethostname() in texts["run/environment/text_summary"]
    assert "pretrain.py" in texts["run/environment/text_summary"]
    assert events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"


def test_the_in_batch_accuracy_is_the_mean_of_both_directions(everything):
    curves = read_curves(everything)
    for tag, steps in (("retrieval/{}", [1, 2, 3]), ("validation/{}", [2, 3])):
        mean, v2a, a2v = (curves[tag.format(name)] for name in ("in_batch_accuracy", "v2a_accuracy", "a2v_accuracy"))
        assert sorted(a2v) == steps
        assert mean == {step: pytest.approx((v2a[step] + a2v[step]) / 2, rel=1e-6) for step in steps}


def test_the_log_says_what_tensorboard_says(everything):
    logged, drawn = curves_of_log(everything), read_curves(everything)
    assert logged.keys() == drawn.keys()
    for tag, points in drawn.items():  # TensorBoard rounds to 32 bits
        assert points == {step: pytest.approx(value, rel=1e-6) for step, value in logged[tag].items()}, tag
    events = [entry["event"] for entry in read_log(everything) if "event" in entry]
    assert (events[0], events[-1]) == ("start", "end")


def test_the_probe_says_what_evaluate_says_of_the_same_clips(everything):
    finished = CliRunner().invoke(app, ["evaluate", str(everything), "--data", str(everything.parent / "held")])
    assert finished.exit_code == 0, finished.output
    scores = json.loads((everything / "retrieval.json").read_text())
    curves = curves_of_log(everything)
    assert scores["pool"] == 7
    for direction in ("audio_to_image", "image_to_audio"):
        for key, value in scores[direction].items():
            assert curves[f"probe/{direction}_{key}"][3] == value, (direction, key)
    assert curves["probe/chance_class_precision_at_1"][3] == scores["chance_class_precision_at_1"]


def test_weight_norms_are_those_of_the_checkpoint_and_gradient_norms_add_up_to_the_whole_one(everything):
    squares: dict[str, float] = defaultdict(float)
    curves = curves_of_log(everything)
    trained = read_manifest(whole_checkpoints(everything)[-1]).parameters
    for name, weight in read_weights(everything).items():
        squares[block_of(name)] += trained[name].trained * float(weight.double().square().sum())
    blocks = {tag.removeprefix("norm_weight/") for tag in curves if tag.startswith("norm_weight/")}
    assert {"patch_embed_a", "blocks_a.0", "blocks_u.0", "decoder_blocks.0", "norm_v"} <= blocks
    for block in blocks:
        assert curves[f"norm_weight/{block}"][3] == pytest.approx(np.sqrt(squares[block]), rel=1e-5), block
    for step in (1, 2, 3):
        parts = [points[step] for tag, points in curves.items() if tag.startswith("norm_gradient/")]
        assert curves["optim/grad_norm"][step] > 0.1  # it was clipped, and is drawn as it was before
        assert np.linalg.norm(parts) == pytest.approx(curves["optim/grad_norm"][step], rel=1e-5)


@pytest.mark.parametrize("engine", ["zero0 alone", "zero1 bf16", "zero2 lamb", "zero3", "zero3_offload"])
def test_norms_of_blocks_are_the_same_on_any_ranks_at_any_zero_stage(engine, everything, tiny_shards, tmp_path):
    stage, *changes = engine.split()
    options = {"bf16": "train.precision=bf16", "lamb": "optim.name=lamb", "alone": "train.micro_batch=4"}
    finished = fork_ranks(
        1 if "alone" in changes else 2, PRETRAIN, run_file(tmp_path, tiny_shards, steps=2),
        f"ds_config=ds_configs/{stage}.json", *(options[change] for change in changes), scratch=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout

    found, expected = curves_of_log(tmp_path / "run"), curves_of_log(everything)
    rounding = 3e-2 if "bf16" in changes else 2e-4
    # After one step of another optimizer the weights are others; the gradients before it are not.
    norms = ("norm_gradient/",) if "lamb" in changes else ("norm_weight/", "norm_gradient/")
    for tag in (tag for tag in expected if tag.startswith(norms)):
        assert found[tag][1] == pytest.approx(expected[tag][1], rel=rounding, abs=1e-6), tag


def test_a_rank_that_is_slower_than_the_others_is_named(tiny_shards, tmp_path):
    finished = fork_ranks(2, SLOW_RANK, run_file(tmp_path, tiny_shards, steps=8), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count(f"rank 1 on host {socket.gethostname()} is slow") == 1
    (told,) = [entry for entry in read_log(tmp_path / "run") if entry.get("event") == "slow rank"]
    assert told["step"] >= 3 and "rank 1" in told["line"]  # later where the machine itself was slow for a moment
    curves = curves_of_log(tmp_path / "run")
    last = told["step"]
    assert curves["ranks/slowest"][last] == 1
    assert curves["ranks/own_seconds_max"][last] > 0.2  # two passes a step, half the difference above the median
    assert curves["ranks/straggler_share"][last] > 0.1


def test_a_killed_run_goes_on_with_one_point_a_step_in_the_log_and_in_tensorboard(tiny_shards, tmp_path):
    run, run_dir = run_file(tmp_path, tiny_shards, steps=40), tmp_path / "run"
    ranks = start_ranks(2, PRETRAIN, run, scratch=tmp_path)
    while not (run_dir / LOG).is_file() or not any(entry["step"] >= 3 for entry in read_log(run_dir)):
        time.sleep(0.02)
    for pid in ranks.pids:
        os.killpg(pid, signal.SIGKILL)
    ranks.wait()
    with (run_dir / LOG).open("a") as log:
        log.write('{"time": 1.0, "step": 4')  # whatever the moment, as if it had been in a write

    finished = fork_ranks(2, PRETRAIN, run, "train.steps=40", scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    beginnings = [entry["event"] for entry in read_log(run_dir) if entry.get("event") in ("start", "resume")]
    assert beginnings == ["start", "resume"]
    curves = curves_of_log(run_dir)
    assert sorted(curves["loss/total"]) == list(range(1, 41))
    assert read_curves(run_dir)["loss/total"] == pytest.approx(curves["loss/total"])

"""A loss that rises and stays high: the run goes back, and goes on as if those steps had never been taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from cavmae_ds.fault_tolerance.exit import ExitCode
from cavmae_ds.monitor.log import read_log
from tests.ranks import fork_ranks

WORKER = Path(__file__).with_name("rising_loss_worker.py")
LOUD_TURN, LOUD_STEPS = 3, (10, 12)  # 24 clips are 3 steps of 8

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 0}}
loss: {{normalise_pixels: false}}
train: {{global_batch: 8, micro_batch: 4, steps: 18, precision: fp32, ema_clips: 40}}
checkpoint: {{every_steps: 4, keep_last: 9}}
guard: {{rewind: true, rewind_after: 3, spike_window: 8, max_rewinds: 1}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 0}}
"""


@pytest.fixture
def run_file(tiny_shards, tmp_path) -> str:
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path, shards=tiny_shards))
    return str(tmp_path / "run.yaml")


def losses(run: Path) -> dict[int, float | None]:
    return {entry["step"]: entry["loss/total"] for entry in read_log(run) if "loss/total" in entry}


def test_the_run_goes_back_and_leaves_the_updates_of_the_steps_out(run_file, tmp_path):
    stopped = fork_ranks(2, WORKER, str(LOUD_TURN), run_file, scratch=tmp_path)

    assert stopped.returncode == ExitCode.LOST, stopped.stdout
    assert stopped.stdout.count("the loss of steps 10 to 12 rose to") == 1 and "Traceback" not in stopped.stdout
    run = tmp_path / "run"
    assert json.loads((run / "rewinds.json").read_text()) == [list(LOUD_STEPS)]

    finished = fork_ranks(2, WORKER, str(LOUD_TURN), run_file, scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert "resumed from step 8" in finished.stdout and "step-00000012" in finished.stdout
    assert [entry["step"] for entry in read_log(run) if entry.get("event") == "left out"] == [10, 11, 12]

    # The same from the start, told beforehand which steps to leave out.
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "rewinds.json").write_text(json.dumps([LOUD_STEPS]))
    told = fork_ranks(2, WORKER, str(LOUD_TURN), run_file, f"run_dir={truth}", scratch=tmp_path)
    assert told.returncode == 0, told.stdout
    assert losses(run) == losses(truth)
    for ema in (False, True):
        found, expected = read_weights(run, ema), read_weights(truth, ema)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    left_out = {step: entry for step, entry in losses(run).items() if LOUD_STEPS[0] <= step <= LOUD_STEPS[1]}
    assert left_out == {10: None, 11: None, 12: None}


def test_a_run_that_may_not_go_back_again_ends_in_one_sentence(run_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "rewinds.json").write_text("[[100, 101]]")
    stopped = fork_ranks(2, WORKER, str(LOUD_TURN), run_file, scratch=tmp_path)

    assert stopped.returncode == ExitCode.REFUSED
    assert "after 1 rewinds (guard.max_rewinds)" in stopped.stdout and "Traceback" not in stopped.stdout
    assert whole_checkpoints(run)

    (run / "rewinds.json").write_text("[[100")
    stopped = fork_ranks(2, WORKER, str(LOUD_TURN), run_file, scratch=tmp_path)
    assert stopped.returncode == ExitCode.REFUSED
    assert "rewinds.json' is damaged" in stopped.stdout and "Traceback" not in stopped.stdout

"""A step that is not finite changes nothing on any rank, its clip is named, and the run goes on as if without it."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.monitor.log import read_log
from cavmae_ds.training.anomalies import RunningMedian
from tests.ranks import fork_ranks

pytestmark = pytest.mark.slow

STAGES_WORKER = Path(__file__).with_name("guard_worker.py")
PRETRAIN_WORKER = Path(__file__).with_name("broken_clip_worker.py")
CLIP, STEPS, WINDOW, FACTOR = 5, 15, 8, 1.01

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 0}}
train: {{global_batch: 8, micro_batch: 4, steps: {steps}, precision: fp32, ema_clips: 40}}
checkpoint: {{every_steps: 6}}
guard: {{max_nonfinite_in_a_row: 2, spike_factor: {factor}, spike_window: {window}}}
monitor: {{log_every: 1, pictures_every: 2, norms_every: 1}}
"""


def test_a_step_that_is_not_finite_is_left_out_by_all_ranks_at_every_stage(tmp_path):
    finished = fork_ranks(2, STAGES_WORKER, str(tmp_path), scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    for rank, results in enumerate(json.loads((tmp_path / "results.json").read_text())):
        broken = {name: [what for what, true in found.items() if not true] for name, found in results.items()}
        assert not any(broken.values()), f"rank {rank}: {broken}"


def run_file(folder: Path, shards: Path) -> str:
    text = RUN.format(folder=folder, shards=shards, steps=STEPS, factor=FACTOR, window=WINDOW)
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


def test_a_broken_clip_is_named_each_time_it_comes_and_costs_its_step_alone(tiny_shards, tmp_path):
    """Five epochs, in each of which the clip comes once; then the last steps again, after a resume."""
    file, run = run_file(tmp_path, tiny_shards), tmp_path / "run"

    finished = fork_ranks(2, PRETRAIN_WORKER, str(CLIP), file, scratch=tmp_path)

    assert finished.returncode == 0, finished.stdout
    log = read_log(run)
    skipped = {entry["step"]: entry["line"] for entry in log if entry.get("event") == "skipped step"}
    points = {entry["step"]: entry for entry in log if "loss/total" in entry}
    assert len(skipped) == STEPS // 3 and list(points) == list(range(1, STEPS + 1))
    assert {step for step, point in points.items() if point["loss/total"] is None} == set(skipped)
    counts = {entry["step"]: entry["guard/skipped_steps"] for entry in log if "guard/skipped_steps" in entry}
    assert counts == {step: len([s for s in skipped if s <= step]) for step in points}
    for step, line in skipped.items():
        assert line in finished.stdout
        (dump,) = (run / "nonfinite").glob(f"step-{step:08d}-rank-*.jsonl")  # of the rank whose clip it is
        clips = [json.loads(line) for line in dump.read_text().splitlines()]
        (broken,) = [clip for clip in clips if not all(clip["finite"].values())]
        assert len(clips) == 4 and broken["clip"] == CLIP and not broken["finite"]["sound"]
        rank = dump.stem.rpartition("-")[2]
        assert f"not finite: clip {CLIP} {broken['clip_id']!r} (sound, rank {rank}); see" in line
        assert broken["clip_id"]
    assert_spikes_are_told(log, run)
    assert "Traceback" not in finished.stdout and "Warning" not in finished.stdout

    shutil.rmtree(whole_checkpoints(run)[-1])
    again = fork_ranks(2, PRETRAIN_WORKER, str(CLIP), file, scratch=tmp_path)

    assert again.returncode == 0 and "resumed from step 12" in again.stdout, again.stdout
    resumed = [entry for entry in read_log(run) if entry["step"] > 12]
    for curve in ("loss/total", "optim/grad_norm", "optim/lr", "guard/skipped_steps"):
        before = {entry["step"]: entry[curve] for entry in log if curve in entry and entry["step"] > 12}
        assert {entry["step"]: entry[curve] for entry in resumed if curve in entry} == before


def assert_spikes_are_told(log: list[dict], run: Path) -> None:
    """The steps whose norm is so many times the median of those before; of neighbours only the first is told."""
    norms, spikes = [], []
    for entry in log:
        norm = entry.get("optim/grad_norm")
        if norm is None or entry["step"] == STEPS:  # what the last step was would be told by the one after it
            continue
        if len(norms) >= WINDOW // 4 and norm > FACTOR * statistics.median(norms[-WINDOW:]):
            spikes.append(len(norms))
        norms.append(norm)
    taken = [entry["step"] for entry in log if entry.get("optim/grad_norm") is not None]
    told = [entry["step"] for entry in log if entry.get("event") == "gradient spike"]
    assert told == [taken[number] for number in spikes if number - 1 not in spikes] and told
    assert max(entry.get("guard/gradient_spikes", 0) for entry in log) == len(spikes)
    for step in told:
        dumps = [run / "spikes" / f"step-{step:08d}-rank-{rank}.jsonl" for rank in range(2)]
        clips = [json.loads(line) for dump in dumps for line in dump.read_text().splitlines()]
        assert len({clip["clip"] for clip in clips}) == 8 and all(clip["grad_norm"] > 0 for clip in clips)


def test_skipped_steps_in_a_row_end_the_run_in_one_sentence_and_all_their_clips_are_listed(tiny_shards, tmp_path):
    finished = fork_ranks(2, PRETRAIN_WORKER, "gradient", run_file(tmp_path, tiny_shards), scratch=tmp_path)

    assert finished.returncode == 2
    said = "pretrain: error: the last 2 steps, to step 2, had no finite loss or gradient and changed nothing"
    assert finished.stdout.count(said) == 1 and str(tmp_path / "run" / "nonfinite") in finished.stdout
    assert "Traceback" not in finished.stdout and "Warning" not in finished.stdout
    assert not whole_checkpoints(tmp_path / "run")
    assert finished.stdout.count("not finite: of no clip by itself, all of the batch are listed") == 2
    for step in (1, 2):
        dumps = [tmp_path / "run" / "nonfinite" / f"step-{step:08d}-rank-{rank}.jsonl" for rank in range(2)]
        clips = [json.loads(line) for dump in dumps for line in dump.read_text().splitlines()]
        assert len({clip["clip"] for clip in clips}) == 8
        assert all(all(clip["finite"].values()) and clip["losses"]["total"] > 0 for clip in clips)


@given(st.integers(1, 9), st.lists(st.floats(0, 1e30), min_size=1, max_size=40))
def test_the_running_median_is_that_of_the_last_numbers(window, numbers):
    median = RunningMedian(window)
    for count, number in enumerate(numbers, start=1):
        median.add(number)
        last = numbers[max(0, count - window) : count]
        assert median.value == statistics.median(last) and len(median) == len(last)

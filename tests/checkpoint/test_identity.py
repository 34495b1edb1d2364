"""What a resume may change, and what it is told when it may not."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.checkpoint.folder import Manifest
from cavmae_ds.checkpoint.identity import check_same_run, identity
from cavmae_ds.config import RunConfig
from cavmae_ds.config.load import validate_config
from cavmae_ds.errors import CheckpointError
from tests.engine.optim_problem import numbers

BATCH = 16


def run(train: dict[str, Any], **sections: Any) -> RunConfig:
    return validate_config({"train": {"global_batch": BATCH, "steps": 4, "precision": "fp32"} | train, **sections})


def resume(before: RunConfig, ranks_before: int, now: RunConfig, ranks: int) -> None:
    """Raises CheckpointError if `now` cannot go on with what `before` saved."""
    manifest = Manifest(
        step=2, clips_seen=2 * BATCH, ranks=ranks_before, zero_stage=1,
        identity=identity(before, numbers(ranks_before)), config=before.model_dump(mode="json"),
    )  # fmt: skip
    # As it comes back from the disk.
    manifest = Manifest.model_validate_json(manifest.model_dump_json())
    check_same_run(manifest, now, numbers(ranks), "RUN/checkpoints/step-00000002")


def test_ranks_may_change_when_a_clip_keeps_its_candidates():
    resume(run({"micro_batch": 4}), 2, run({"micro_batch": 8}), 1)
    resume(run({"micro_batch": 4}), 2, run({"micro_batch": 2}), 4)


@pytest.mark.parametrize(
    ("micro_batch", "ranks", "now", "expected"),
    [
        (2, 2, 1, "this run (ranks: 1, train.micro_batch: 2) among 2; set train.micro_batch: 4 or choose"),
        (8, 2, 1, "among 8; set train.micro_batch: 16 or contrastive.two_pass: true or choose another run_dir"),
        (1, 2, 4, "among 4; start it on as many ranks as before (2) or choose another run_dir"),
    ],
)  # fmt: skip
def test_other_candidates_are_refused_with_the_settings_that_keep_them(micro_batch, ranks, now, expected):
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        resume(run({"micro_batch": micro_batch}), ranks, run({"micro_batch": micro_batch}), now)


@pytest.mark.parametrize("before", [{}, {"from_checkpoint": "first.pth"}])
def test_other_weights_to_begin_with_change_nothing_and_whoever_asks_for_them_is_told(before, caplog):
    first, other = run({"micro_batch": 4}, init=before), run({"micro_batch": 4}, init={"from_checkpoint": "other.pth"})
    with caplog.at_level(logging.INFO):
        resume(first, 1, first, 1)
        resume(other, 1, run({"micro_batch": 4}), 1)  # given up: the file may be gone
        assert not caplog.messages
        resume(first, 1, other, 1)
    (said,) = caplog.messages
    assert f"init.from_checkpoint was {before.get('from_checkpoint')}, now other.pth: this run goes on from" in said
    assert "choose another run_dir" in said


sizes = st.sampled_from([1, 2, 4])


@given(sizes, sizes, sizes, sizes, st.sampled_from(["global", "rank", "chunk=2"]), st.booleans(), st.booleans())
def test_the_settings_that_are_named_are_accepted(micro, ranks, micro_now, ranks_now, negatives, two_pass, two_now):
    before = run({"micro_batch": micro}, contrastive={"negatives": negatives, "two_pass": two_pass})
    try:
        now = run({"micro_batch": micro_now}, contrastive={"negatives": negatives, "two_pass": two_now})
        resume(before, ranks, now, ranks_now)
    except CheckpointError as refusal:
        if advised := re.search(r"set train\.micro_batch: (\d+)", str(refusal)):
            contrastive = {"negatives": negatives, "two_pass": two_now}
            resume(before, ranks, run({"micro_batch": int(advised[1])}, contrastive=contrastive), ranks_now)
        if "contrastive.two_pass: true" in str(refusal):
            contrastive = {"negatives": negatives, "two_pass": True}
            resume(before, ranks, run({"micro_batch": micro_now}, contrastive=contrastive), ranks_now)


def test_without_a_contrastive_loss_any_ranks_go_on():
    cfg = run({"micro_batch": 2}, loss={"contrastive_weight": 0.0})
    resume(cfg, 2, cfg, 8)


def test_a_running_mean_may_be_given_up_but_not_taken_up():
    plain, mean = run({"micro_batch": 4}), run({"micro_batch": 4, "ema_clips": 100})
    resume(mean, 2, plain, 2)
    with pytest.raises(CheckpointError, match=r"train\.ema_clips was None, now 100"):
        resume(plain, 2, mean, 2)


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("train", {"precision": "bf16"}, "train.precision was fp32, now bf16"),
        ("train", {"seed": 7}, "train.seed was 0, now 7"),
        ("optim", {"name": "lion"}, "optim.name was adamw, now lion"),
    ],
)
def test_another_run_is_refused_by_what_differs(section, values, expected):
    now = run({"micro_batch": 4} | (values if section == "train" else {}), optim=values if section == "optim" else {})
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        resume(run({"micro_batch": 4}), 2, now, 2)

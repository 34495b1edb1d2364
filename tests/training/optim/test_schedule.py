"""The learning rate is a pure function of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.training.optim.schedule import learning_rate_share

BATCH = 8


def shares(cfg: OptimConfig, total_steps: int, steps_per_epoch: int, batch: int = BATCH) -> list[float]:
    return [learning_rate_share(step, cfg, total_steps, steps_per_epoch, batch) for step in range(total_steps)]


def test_the_step_decay_follows_the_official_trace_per_epoch():
    cfg = OptimConfig(schedule="step", learning_rate=5e-5)  # start 10, every 5, x 0.5: spec cav-mae.md 8, test 11
    rates = [cfg.learning_rate * share for share in shares(cfg, total_steps=25 * 3, steps_per_epoch=3)]
    expected = [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5
    assert rates[::3] == rates[2::3] == pytest.approx(expected)


def test_the_warm_up_rises_in_even_steps_and_wastes_none_at_zero():
    assert shares(OptimConfig(warmup_clips=4 * BATCH), 20, 5)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_warm_up_takes_the_same_clips_whatever_the_batch():
    cfg = OptimConfig(warmup_clips=96)
    small, large = shares(cfg, 100, 100, batch=8), shares(cfg, 25, 25, batch=32)
    assert small[3:12:4] == pytest.approx(large[:3]) and large[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_warm_up_that_ends_within_a_step_is_over_after_it():
    assert shares(OptimConfig(warmup_clips=20), 9, 9)[:4] == pytest.approx([0.4, 0.8, 1.0, 1.0])


def test_the_cosine_falls_from_1_over_the_middle_to_the_final_share_on_the_last_step():
    course = shares(OptimConfig(warmup_clips=2 * BATCH, final_share=0.1), total_steps=53, steps_per_epoch=5)
    assert course[2] == 1.0 and course[27] == pytest.approx(0.55) and course[52] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(course[2:]))


def test_a_constant_rate_stays():
    assert set(shares(OptimConfig(schedule="constant"), 9, 3)) == {1.0}

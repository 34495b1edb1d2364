"""Which rank the others wait for, told from the ranks' own work: pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.monitor.speed import SLOW_POINTS, OwnWork, Spread, Stragglers, spread

HOSTS = ["a", "a", "b", "b"]


def judged(stragglers: Stragglers, own_s: list[float], points: int) -> list[str]:
    lines = [stragglers.judge(spread(own_s, step_s=1.0)) for _ in range(points)]
    return [line for line in lines if line]


def test_a_rank_that_stays_slow_is_named_once_with_its_host_and_what_it_costs():
    stragglers = Stragglers(HOSTS)

    assert judged(stragglers, [0.4, 0.4, 0.4, 0.6], SLOW_POINTS - 1) == []
    (line,) = judged(stragglers, [0.4, 0.4, 0.4, 0.6], 5)
    assert "rank 3 on host b" in line and "0.6 s" in line and "0.4 s" in line and "20%" in line


def test_a_rank_that_was_fast_again_in_between_is_named_anew():
    stragglers = Stragglers(HOSTS)
    slow, well = [0.4, 0.6, 0.4, 0.4], [0.4, 0.4, 0.4, 0.4]
    assert len(judged(stragglers, slow, SLOW_POINTS)) == 1
    assert judged(stragglers, well, 1) == []
    assert judged(stragglers, slow, SLOW_POINTS - 1) == []
    assert len(judged(stragglers, slow, 1)) == 1


def test_ranks_that_take_turns_in_being_slow_are_no_stragglers():
    stragglers = Stragglers(HOSTS)
    for slow in (0, 1, 2, 3) * 3:
        assert stragglers.judge(spread([0.4 + 0.2 * (rank == slow) for rank in range(4)], 1.0)) is None


@pytest.mark.parametrize(
    ("own_s", "why"),
    [([0.40, 0.40, 0.40, 0.47], "less than 1.2 times the median"), ([0.001, 0.001, 0.001, 0.04], "short in any case")],
)
def test_small_differences_name_nobody(own_s, why):
    assert judged(Stragglers(HOSTS), own_s, 10) == [], why


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=64), st.floats(1e-3, 1e3))
def test_the_slowest_rank_is_one_that_took_longest_and_shares_count_from_the_median(own_s, step_s):
    found = spread(own_s, step_s)
    assert own_s[found.slowest] == found.max_s == max(own_s)
    assert min(own_s) <= found.median_s <= found.max_s
    assert found.share == pytest.approx((found.max_s - found.median_s) / step_s)
    assert isinstance(found, Spread)


def test_only_the_forward_of_training_counts_and_only_where_no_rank_waits_in_it():
    import time

    import torch

    class Engine:
        def __init__(self, stage: int):
            self.module, self._stage = torch.nn.Linear(2, 2), stage
            self.module.register_forward_pre_hook(lambda *_: time.sleep(0.02))  # within the forward, as work is

        def zero_optimization_stage(self) -> int:
            return self._stage

    for stage, counts in ((2, True), (3, False)):
        engine = Engine(stage)
        hooks = dict(engine.module._forward_pre_hooks)
        engine.module._forward_pre_hooks.clear()
        work = OwnWork(engine, torch.device("cpu"))
        engine.module._forward_pre_hooks.update(hooks)
        engine.module(torch.ones(1, 2))
        _, own_s = work.take()
        assert (own_s >= 0.02) == counts
        engine.module.eval()
        engine.module(torch.ones(1, 2))
        assert work.take() == (0.0, 0.0)

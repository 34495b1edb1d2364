"""Which rank the others wait for, told from the ranks' own work; how that work is timed."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.monitor.speed import OwnWork, Spread, Stragglers, spread

HOSTS = ["a", "a", "b", "b"]


def judged(stragglers: Stragglers, own_s: list[float], points: int) -> list[str]:
    lines = [stragglers.judge(spread(own_s, step_s=1.0)) for _ in range(points)]
    return [line for line in lines if line]


def test_a_rank_that_is_slow_at_three_points_in_a_row_is_named_once_with_its_host_and_what_it_costs():
    stragglers = Stragglers(HOSTS)

    assert judged(stragglers, [0.4, 0.4, 0.4, 0.6], 2) == []
    (line,) = judged(stragglers, [0.4, 0.4, 0.4, 0.6], 1)
    assert "rank 3 on host b" in line and "0.6 s" in line and "0.4 s" in line and "20%" in line
    assert judged(stragglers, [0.4, 0.4, 0.4, 0.6], 5) == []


def test_a_rank_that_was_fast_again_in_between_is_named_anew():
    stragglers = Stragglers(HOSTS)
    slow, well = [0.4, 0.6, 0.4, 0.4], [0.4, 0.4, 0.4, 0.4]
    assert len(judged(stragglers, slow, 3)) == 1
    assert judged(stragglers, well, 1) == []
    assert judged(stragglers, slow, 2) == []
    assert len(judged(stragglers, slow, 1)) == 1


def test_ranks_that_take_turns_in_being_slow_are_no_stragglers():
    stragglers = Stragglers(HOSTS)
    for slow in (0, 1, 2, 3) * 3:
        assert stragglers.judge(spread([0.4 + 0.2 * (rank == slow) for rank in range(4)], 1.0)) is None


@pytest.mark.parametrize(
    ("own_s", "named"),
    [
        ([0.40, 0.40, 0.40, 0.47], False),  # less than 1.2 times the median
        ([0.40, 0.40, 0.40, 0.49], True),
        ([0.001, 0.001, 0.001, 0.05], False),  # costs less than 5 % of a step
        ([0.001, 0.001, 0.001, 0.052], True),
    ],
)
def test_a_rank_is_slow_from_1_2_times_the_median_and_5_percent_of_a_step_on(own_s, named):
    assert len(judged(Stragglers(HOSTS), own_s, 10)) == named


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=64), st.floats(1e-3, 1e3))
def test_the_slowest_rank_is_one_that_took_longest_and_shares_count_from_the_median(own_s, step_s):
    found = spread(own_s, step_s)
    assert own_s[found.slowest] == found.max_s == max(own_s)
    assert min(own_s) <= found.median_s <= found.max_s
    assert found.share == pytest.approx((found.max_s - found.median_s) / step_s)
    assert isinstance(found, Spread)


class Slow(torch.nn.Module):
    """A model whose forward takes 20 ms."""

    def forward(self) -> None:
        time.sleep(0.02)


class Engine:
    """What OwnWork asks of DeepSpeed's."""

    def __init__(self, stage: int):
        self.module, self._stage = Slow(), stage

    def zero_optimization_stage(self) -> int:
        return self._stage


@pytest.mark.parametrize(("stage", "counts"), [(2, True), (3, False)])
def test_only_the_forward_of_training_counts_and_only_where_no_rank_waits_in_it(stage, counts):
    engine = Engine(stage)
    work = OwnWork(engine, torch.device("cpu"))
    engine.module()
    engine.module()
    waited_s, own_s = work.take()
    assert waited_s == 0.0 and (own_s >= 0.04 if counts else own_s == 0.0)
    engine.module.eval()
    engine.module()
    assert work.take() == (0.0, 0.0)


def test_the_wait_for_batches_counts_at_every_stage():
    def slow_source():
        for batch in "ab":
            time.sleep(0.02)
            yield batch

    work = OwnWork(Engine(3), torch.device("cpu"))
    assert list(work.timed(slow_source())) == ["a", "b"]
    waited_s, own_s = work.take()
    assert own_s == waited_s >= 0.04

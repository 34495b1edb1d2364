"""The running mean of the weights, on one process; on any ranks: test_optim_under_zero.py, killed: test_survival.py."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cavmae_ds.distributed.process_group import World
from cavmae_ds.training.ema import WeightAverage

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def engine_of(layer: torch.nn.Module) -> SimpleNamespace:
    """An engine at ZeRO stage 0, as far as a mean looks at it."""
    return SimpleNamespace(module=layer, optimizer=torch.optim.SGD(layer.parameters(), 1.0))


def weights_become(layer: torch.nn.Linear, value: float) -> None:
    for parameter in layer.parameters():
        parameter.data.fill_(value)


def values(mean: Any) -> list[float]:
    """The distinct values of a running mean."""
    return torch.cat([flat.flatten() for flat in mean.means]).unique().tolist()


@pytest.fixture
def layer() -> torch.nn.Linear:
    layer = torch.nn.Linear(2, 2)
    weights_become(layer, 0.0)
    return layer


@pytest.mark.parametrize("global_batch", [5, 20, 100])
def test_weights_of_ema_clips_ago_count_1_in_e_whatever_the_batch(global_batch, layer):
    mean = WeightAverage(engine_of(layer), ALONE, 100, global_batch)
    weights_become(layer, 1.0)
    for step in range(100 // global_batch):
        mean.update(step + 1)
    assert values(mean) == [pytest.approx(1 - 1 / math.e, rel=1e-5)]


def test_a_step_keeps_exp_of_minus_its_batch_by_the_horizon_of_the_mean_so_far(layer):
    mean = WeightAverage(engine_of(layer), ALONE, 100, 8)
    expected = 0.0
    for step, value in enumerate((1.0, -3.0, 2.0)):
        weights_become(layer, value)
        mean.update(step + 1)
        expected = math.exp(-0.08) * expected + (1 - math.exp(-0.08)) * value
    assert values(mean) == [pytest.approx(expected, rel=1e-5)]


def test_it_begins_with_the_first_weights_and_a_step_that_was_skipped_does_not_count(layer):
    weights_become(layer, 3.0)
    mean = WeightAverage(engine_of(layer), ALONE, 100, 8)
    assert values(mean) == [3.0]
    weights_become(layer, 5.0)
    mean.update(1, skipped=True)
    assert values(mean) == [3.0]


def test_what_is_not_trained_has_no_mean(layer):
    layer.bias.requires_grad_(False)
    (only,) = WeightAverage(engine_of(layer), ALONE, 100, 8).means
    assert only.shape == layer.weight.shape and only.dtype == torch.float32

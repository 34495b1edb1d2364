"""The plain mean of the weights after the epochs of a range; of a whole run: test_finetuning.py."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.tasks.finetune.config import AverageConfig
from cavmae_ds.tasks.finetune.weight_average import EpochAverage
from tests.training.test_ema import ALONE, engine_of, values, weights_become

STEPS_PER_EPOCH = 3


def after(epochs: int, skipped: tuple[int, ...] = ()) -> list[float]:
    """The mean of epochs 2 to 4 when the weights after each step are its number."""
    layer = torch.nn.Linear(2, 2)
    mean = EpochAverage(engine_of(layer), ALONE, AverageConfig(from_epoch=2, to_epoch=4), STEPS_PER_EPOCH)
    for step in range(1, epochs * STEPS_PER_EPOCH + 1):
        weights_become(layer, float(step))
        mean.update(step, skipped=step in skipped)
    return values(mean)


@pytest.mark.parametrize(("epochs", "expected"), [(2, 6.0), (3, (6 + 9) / 2), (4, (6 + 9 + 12) / 3), (6, 9.0)])
def test_every_epoch_of_the_range_counts_alike_and_no_other_does(epochs, expected):
    assert after(epochs) == [pytest.approx(expected)]


def test_an_epoch_counts_however_its_last_step_did():
    assert after(4, skipped=(9,)) == [pytest.approx(9.0)]

"""Sections optim and train: what one key says follows from others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.tasks import validate_run


def test_a_warm_up_in_steps_means_so_many_global_batches():
    train = {"global_batch": 64, "micro_batch": 8, "steps": 9}
    assert validate_run({"train": train, "optim": {"warmup_steps": 20}}).optim.warmup_clips == 1280
    default = validate_run({"train": {"steps": 9}, "optim": {"warmup_steps": 2}})
    assert default.optim.warmup_clips == 2 * default.train.global_batch


@given(batch=st.integers(1, 2**20), reference=st.integers(1, 2**20), rate=st.floats(1e-6, 1.0))
def test_the_peak_follows_the_batch_by_its_rule(batch, reference, rate):
    def peak(rule: str) -> float:
        cfg = OptimConfig(learning_rate=rate, lr_rule=rule, reference_batch=reference)
        assert cfg.peak_learning_rate(reference) == rate
        return cfg.peak_learning_rate(batch)

    assert peak("linear") == pytest.approx(rate * batch / reference)
    assert peak("sqrt") ** 2 == pytest.approx(rate * peak("linear"))
    assert OptimConfig(learning_rate=rate).peak_learning_rate(batch) == rate


def test_an_optimizer_brings_its_own_constants_and_keys_beside_its_name_override_them():
    lion = OptimConfig(name="lion", beta1=0.8)
    assert (lion.beta1, lion.beta2) == (0.8, 0.99)
    assert (OptimConfig().beta1, OptimConfig(name="lamb").beta1, OptimConfig(name="lamb").eps) == (0.95, 0.9, 1e-6)

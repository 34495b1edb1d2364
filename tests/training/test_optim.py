"""The learning rate is a pure function of the step; decay touches matrices only."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks import validate_run
from cavmae_ds.training.optim.build import parameter_groups
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


def test_the_cosine_ends_at_the_final_share_on_the_last_step_and_never_rises():
    course = shares(OptimConfig(final_share=0.1), total_steps=50, steps_per_epoch=5)
    assert course[0] == 1.0 and course[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(course))


def test_a_constant_rate_stays():
    assert set(shares(OptimConfig(schedule="constant"), 9, 3)) == {1.0}


def test_biases_norms_tokens_and_positions_are_exempt_from_decay_and_nothing_is_left_out():
    model = CAVMAE(ModelConfig(embed_dim=32, num_heads=4, decoder_embed_dim=16, decoder_num_heads=2,
                               modality_specific_depth=1, decoder_depth=1, trainable_positions=True))  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(model.named_parameters(), 0.1)
    )
    assert decayed | exempt == set(names.values()) and not decayed & exempt
    assert all(name.endswith(("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "embed.weight", "pred_a.weight",
                              "pred_v.weight")) for name in decayed)  # fmt: skip
    assert {"mask_token", "modality_a", "pos_embed_a", "norm.weight", "blocks_u.0.norm1_a.weight"} <= exempt


def test_frozen_parameters_are_in_no_group():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer.named_parameters(), 0.1)
    assert group["params"] == [layer.weight] and group["weight_decay"] == 0.1

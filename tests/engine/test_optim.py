"""The learning rate is a pure function of the step; decay touches matrices only."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cavmae_ds.config import ModelConfig, OptimConfig
from cavmae_ds.model.cavmae import CAVMAE
from cavmae_ds.optim import learning_rate_share, parameter_groups

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

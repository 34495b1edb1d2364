"""Which parameters decay, and how much faster or slower than the others each is trained."""

from __future__ import annotations

import torch

from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.training.optim.build import build_optimizer, parameter_groups


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


def test_each_parameter_has_its_own_multiple_of_the_learning_rate():
    layer, cfg = torch.nn.Linear(2, 2), OptimConfig(name="adamw", weight_decay=0.1)
    optimizer = build_optimizer(
        layer.named_parameters(), cfg, 1e-3, torch.device("cpu"), {"weight": 0.5, "bias": 2.0}.__getitem__
    )
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(layer.weight): (5e-4, 0.1), id(layer.bias): (2e-3, 0.0)}


def test_the_official_adam_decays_everything():
    layer = torch.nn.Linear(2, 2)
    cfg = OptimConfig(name="adam", weight_decay=0.1)
    (group,) = build_optimizer(layer.named_parameters(), cfg, 1e-3, torch.device("cpu")).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 2

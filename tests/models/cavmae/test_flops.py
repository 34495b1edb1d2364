"""FLOPs against the hand count of spec/scale.md 2 and against PyTorch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.flops import block_stacks, forward_flops, training_flops
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE


def test_the_base_model_costs_what_was_counted_by_hand():
    model, mask = ModelConfig(), MaskConfig()
    assert forward_flops(model, mask) == pytest.approx(78.07e9, rel=3e-3)
    assert training_flops(model, mask) == pytest.approx(233.8e9, rel=3e-3)
    token_widths = sum(stack.depth * stack.tokens * stack.width for stack in block_stacks(model, mask))
    assert token_widths == pytest.approx(4.667e6, rel=1e-3)


@pytest.mark.parametrize("mask", [MaskConfig(), MaskConfig(audio_ratio=0.5, image_ratio=0.9)])
def test_what_runs_is_what_is_counted_but_for_what_ours_spares(mask):
    # given a small model of odd proportions
    cfg = ModelConfig(
        embed_dim=48,
        num_heads=4,
        modality_specific_depth=2,
        shared_depth=3,
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=4,
        mlp_ratio=3.0,
        audio_frames=96,
        image_size=64,
    )
    plans = draw_plans(cfg, mask, 0, 0, torch.arange(1))
    # when PyTorch counts the products of one forward pass (it has no count for fused attention on the CPU)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        CAVMAE(cfg)(torch.randn(1, 96, 128), torch.randn(1, 3, 64, 64), plans)
    # then they are ours less the embedding of what is hidden and the prediction of what is visible
    never_embedded = 2 * 48 * (plans.audio.hidden.numel() * 256 + plans.image.hidden.numel() * 768)
    never_predicted = 2 * 32 * (plans.audio.keep.numel() * 256 + plans.image.keep.numel() * 768)
    assert counter.get_total_flops() == forward_flops(cfg, mask) - never_embedded - never_predicted

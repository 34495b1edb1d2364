"""What is measured on meta tensors against CAV-MAE counted by hand."""

from __future__ import annotations

import pytest

from cavmae_ds.models.cavmae.config import PRESETS, MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, image_grid
from cavmae_ds.models.common.masking import kept_patches
from cavmae_ds.plan.measure import first_pass, flops_per_clip, measure, measured_peak
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from tests.plan.formulas_flops import (
    block_stacks,
    classifier_flops,
    encoder_flops,
    features_flops,
    forward_flops,
    training_flops,
)
from tests.plan.formulas_memory import activations

CLIPS = 8
SWITCHES = [(0, False), (0, True), (2, False), (2, True)]
CASES = [(name, precision, *both) for name in ("tiny", "base") for precision in ("fp32", "bf16") for both in SWITCHES]
CASES += [(name, "bf16", *both) for name in ("large", "huge", "giant") for both in (SWITCHES[0], SWITCHES[3])]


def run_of(preset: str = "base", precision: str = "bf16", chunk: int = 0, recompute: bool = False) -> PretrainConfig:
    model = {"preset": preset, "decoder_chunk": chunk, "checkpoint_towers": recompute}
    train = {"global_batch": CLIPS, "micro_batch": CLIPS, "steps": 2, "precision": precision}
    return validate_run({"model": model, "train": train})


def spared(model: ModelConfig, mask: MaskConfig) -> tuple[int, int]:
    """FLOPs forward of embedding what is hidden and of predicting what is visible: counted by hand, and never run."""
    grids = (audio_grid(model), mask.audio_ratio), (image_grid(model), mask.image_ratio)
    kept = [(kept_patches(grid.patches, ratio), grid) for grid, ratio in grids]
    embedded = sum(2 * (grid.patches - visible) * grid.values * model.embed_dim for visible, grid in kept)
    return embedded, sum(2 * visible * grid.values * model.decoder_embed_dim for visible, grid in kept)


def test_the_base_model_costs_what_was_counted_by_hand():
    model, mask = ModelConfig(), MaskConfig()
    assert forward_flops(model, mask) == pytest.approx(78.07e9, rel=3e-3)
    assert training_flops(model, mask) == pytest.approx(233.8e9, rel=3e-3)
    token_widths = sum(stack.depth * stack.tokens * stack.width for stack in block_stacks(model, mask))
    assert token_widths == pytest.approx(4.667e6, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_flops_that_run_are_those_counted_but_for_what_is_spared(preset):
    cfg = run_of(preset)
    embedded, predicted = spared(cfg.model, cfg.mask)
    # Backward is twice the forward, less the gradient of the inputs.
    expected = training_flops(cfg.model, cfg.mask) - 2 * embedded - 3 * predicted
    assert flops_per_clip(cfg) == pytest.approx(expected, rel=1e-5)  # clips are compared with the few others
    assert flops_per_clip(cfg) == pytest.approx(training_flops(cfg.model, cfg.mask), rel=0.015)


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_recomputation_runs_the_encoders_blocks_again_but_for_the_last_product_of_each(preset):
    """torch stops a recomputation when it has all that backward needs, which the output of a block is not."""
    cfg = run_of(preset, recompute=True)
    stacks = block_stacks(cfg.model, cfg.mask)._replace(decoder=None)
    last = sum(2 * s.depth * s.tokens * s.width * int(s.width * cfg.model.mlp_ratio) for s in stacks if s)
    again = measure(cfg, CLIPS).flops / CLIPS - flops_per_clip(cfg)
    assert again == pytest.approx(encoder_flops(cfg.model, cfg.mask) - last, rel=1e-6)


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_a_first_pass_computes_the_features_alone(preset):
    cfg = run_of(preset)
    expected = features_flops(cfg.model, cfg.mask) - spared(cfg.model, cfg.mask)[0]
    assert first_pass(cfg).flops == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("freeze", [False, True], ids=["whole", "probe"])
@pytest.mark.parametrize("mode", ["multimodal", "audioonly", "videoonly"])
def test_a_classifiers_flops_are_those_counted_but_for_its_head(mode, freeze):
    classifier = {"mode": mode, "classes": 10, "freeze_base": freeze}
    cfg = validate_run({"model": {"preset": "tiny"}, "classifier": classifier, "train": {"epochs": 1}})
    measured = flops_per_clip(cfg, classes=10)
    assert measured == pytest.approx(classifier_flops(cfg.model, cfg.classifier), rel=1e-4)


@pytest.mark.parametrize(("preset", "precision", "chunk", "recompute"), CASES)
def test_bytes_held_are_those_counted(preset, precision, chunk, recompute):
    """In flight the count takes the gradients of a block's widest op beside all that the block saved: an upper bound.

    It weighs more where the decoder is shallow. A decoder in chunks has its peak inside forward, which leaves less.
    """
    cfg = run_of(preset, precision, chunk, recompute)
    measured, counted = measure(cfg, CLIPS), activations(cfg, CLIPS)
    ids_of_masks = 2 * 8 * (cfg.model.audio_patches + cfg.model.image_patches) * CLIPS  # counted among the inputs
    saved = counted.saved + ids_of_masks
    assert saved * 0.999 <= measured.peak <= (saved + counted.workspace) * 1.01
    if not chunk:
        assert measured.saved == pytest.approx(saved, rel=2e-3)
    else:
        assert measured.peak == pytest.approx(saved + counted.workspace, rel=0.04 if preset == "tiny" else 0.01)


@pytest.mark.parametrize(("chunk", "clips"), [(0, 1), (0, 40), (4, 3), (4, 40)])
def test_bytes_of_a_micro_batch_that_was_not_measured_follow_from_two_that_were(chunk, clips):
    cfg = run_of("tiny", "bf16", chunk)
    assert measured_peak(cfg, clips) == pytest.approx(measure(cfg, clips).peak, rel=0.01)

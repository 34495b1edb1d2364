"""The plan's arithmetic against numbers that others published or that were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cavmae_ds.plan.communication import traffic
from cavmae_ds.plan.hardware import choose_gpu
from cavmae_ds.plan.measure import flops_per_clip, with_values
from cavmae_ds.plan.predict import Choice, Machine, Planner
from cavmae_ds.plan.speed import efficiency
from cavmae_ds.plan.states import Parameters, count, states
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.comparison import across_clips, comparison
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.task import AcrossClips, Variant


def variant(chunk: int = 0, recompute: bool = False, two_pass: bool = False) -> Variant:
    model = ("model.decoder_chunk", chunk), ("model.checkpoint_towers", recompute)
    return Variant("", model, (("contrastive.two_pass", two_pass),))


def base(**sections) -> PretrainConfig:
    return validate_run({"train": {"global_batch": 256, "micro_batch": 256, "epochs": 25}} | sections)


def test_the_base_model_has_the_parameters_and_flops_of_the_official_log():
    parameters = count(base())
    assert parameters.total == pytest.approx(191.04e6, rel=1e-4)
    position_tables = 708 * (768 + 512)  # fixed
    norms_of_modalities = 4 * 2 * (22 * 768 + 8 * 512)  # which towers and decoder have, and only the shared block uses
    assert parameters.trainable == parameters.total - position_tables - norms_of_modalities
    # 233.8 GFLOP, less the embedding of hidden patches and the prediction of visible ones, which are spared
    assert flops_per_clip(base()) == pytest.approx(232.9e9, rel=1e-3)


def test_parameters_that_no_loss_reaches_have_neither_gradient_nor_optimizer_state():
    without_decoder = count(base(loss={"mae_weight": 0.0, "contrastive_weight": 1.0}))
    assert without_decoder.trainable < count(base()).trainable - 25e6  # the decoder alone is 26 million


@pytest.mark.parametrize(
    ("stage", "expected"),  # bytes a parameter: weights, gradients, optimizer of ZeRO in bf16 on 64 GPUs
    [(1, (2, 2 + 4, 12 / 64)), (2, (2, 4 / 64, 12 / 64)), (3, (2 / 64, 4 / 64, 12 / 64))],
)
def test_bf16_states_follow_the_zero_paper_but_for_fp32_sums_of_gradients(stage, expected):
    parameters = Parameters(7_500_000_000, 7_500_000_000, (7_500_000_000,))  # the paper's figure 1
    held = states(base(), {"zero_optimization": {"stage": stage}}, parameters, 64)
    in_bytes = held.weights, held.gradients, held.optimizer
    assert [part / parameters.total for part in in_bytes] == pytest.approx(expected, rel=1e-6)


def test_deepspeeds_buckets_outweigh_the_sharded_states_of_the_base_model():
    """Two buckets of half a billion bf16 values, whatever the model: more than all else that ZeRO-2 holds on 8 GPUs."""
    fragment = {"zero_optimization": {"stage": 2, "overlap_comm": True}}
    held = states(base(), fragment, count(base()), 8)
    assert held.buckets == 2 * 2 * 500_000_000
    assert held.buckets > held.total - held.buckets
    small = {"zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 50_000_000}}
    assert states(base(), small, count(base()), 8).buckets == held.buckets / 10


def test_two_passes_cost_13_and_checkpointing_10_percent_of_the_base_models_flops():
    planner = Planner(base(), Machine(choose_gpu("h200"), 1, 8, 0.4))
    expected = {variant(two_pass=True): 0.132, variant(recompute=True): 0.097, variant(chunk=128): 0.0}
    for switches, share in expected.items():
        choice = Choice(Path("ds_configs/zero2.json"), 128, switches)
        assert planner.extra_flops(choice) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(
    ("stage", "gradients", "weights"),  # in model sizes, of two micro-batches, as counted on two ranks
    [(1, 2 * 1, 1), (2, 2 * 2, 1), (3, 2, 2)],
)
def test_zero_moves_what_was_counted(stage, gradients, weights):
    parameters = Parameters(1_000_000, 1_000_000, (1_000_000,))
    cfg = base(train={"global_batch": 8, "micro_batch": 2, "epochs": 1, "precision": "fp32"})
    received = traffic(cfg, {"zero_optimization": {"stage": stage}}, parameters, AcrossClips(), 2)
    assert received.gradients == gradients * 4_000_000 / 2  # half of everything is this rank's own
    assert received.weights == weights * 4_000_000 / 2


def test_contrastive_bytes_and_flops_are_those_of_one_gathered_side():
    cfg = base(train={"global_batch": 65_536, "micro_batch": 8192, "epochs": 1}, contrastive={"gather_dtype": "bf16"})
    across = across_clips(cfg, 8)
    assert across.candidates == 65_536
    assert across.received == pytest.approx(7 / 8 * (101e6 + 201e6), rel=0.01)  # spec/scale.md 3c
    assert across.flops / 8192 == pytest.approx(0.40e9, rel=0.02)  # 3b, a clip


@pytest.mark.parametrize(
    ("clips", "gpus", "usual", "pessimistic"),  # spec/scale.md 3d
    [
        (32, 64, 93.2, 80.3),
        (32, 512, 92.1, 79.0),
        (256, 64, 98.9, 96.7),
        (256, 512, 97.4, 94.6),
        (512, 512, 97.6, 95.6),
    ],
)
def test_weak_scaling_is_that_of_the_published_model(clips, gpus, usual, pessimistic):
    cfg = base(
        train={"global_batch": clips * gpus, "micro_batch": clips, "epochs": 1}, contrastive={"gather_dtype": "bf16"}
    )
    planner = Planner(cfg, Machine(choose_gpu("h200"), gpus, 8, 0.6))
    for percent, hidden, slow in ((usual, 0.5, False), (pessimistic, 0.0, True)):
        time = planner.time(planner.configured(), hidden, slow)
        # The published one gives ZeRO-2 a reduce-scatter; DeepSpeed's all-reduce moves half as much again.
        received = planner.received(planner.configured())
        exposed = time.exposed - (1 - hidden) * received.zero / 3 / (200e9 if slow else 340e9)
        assert 100 * efficiency(time.compute, time.loss, exposed) == pytest.approx(percent, abs=1.0)


def test_the_step_of_the_official_recipe_fits_every_card_and_says_so():
    planner = Planner(base(), Machine(choose_gpu("l40s"), 8, 8, 0.4))
    choice = Choice(Path("ds_configs/zero2.json"), 32, variant())
    assert planner.predict(choice).fits
    assert planner.largest_micro_batch(choice.ds_config, choice.variant) > 200


def test_a_batch_that_two_passes_see_at_once_is_compared_as_a_whole():
    cfg = base(train={"global_batch": 4096, "micro_batch": 64, "epochs": 1})
    one_pass, two_passes = (comparison(with_values(cfg, [("contrastive.two_pass", both)]), 8) for both in (False, True))
    assert one_pass is not None and (one_pass.candidates, one_pass.per_step) == (512, 8)
    assert two_passes is not None and (two_passes.candidates, two_passes.per_step) == (4096, 1)

"""The acceptance tests of spec/cav-mae.md 8, by number: here, or where they stand."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import torch

from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.config.sections.training import OptimConfig
from cavmae_ds.models.cavmae.classifier import CAVMAEFT, CAVMAEFTAudio
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.training.optim.build import build_optimizer
from cavmae_ds.training.optim.schedule import learning_rate_share
from cavmae_ds.weights.init import start_from
from cavmae_ds.weights.official import load_official

TESTS = Path(__file__).parent


def assert_stands(file: str, *tests: str) -> None:
    """Each of these is a test of that file, and nothing skips it there."""
    found = _tests_in(TESTS / file)
    for test in tests:
        assert test in found, f"{file} has no {test}"
        assert "skip" not in found[test], f"{file}: {test} is skipped ({found[test]})"


@cache
def _tests_in(path: Path) -> dict[str, str]:
    """Name of each test function -> its decorators."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {node.name: " ".join(ast.unparse(mark) for mark in node.decorator_list) for node in functions}


def test_acceptance_01_names_shapes_and_counts():
    assert_stands(
        "models/cavmae/test_golden.py",
        "test_the_base_model_has_the_official_names_shapes_and_counts",
        "test_names_shapes_and_order_are_the_official_ones",
    )
    assert_stands("models/cavmae/test_classifier.py", "test_names_shapes_and_counts_are_the_official_ones")


def test_acceptance_02_position_rows_and_sums():
    assert_stands(
        "models/common/test_patches.py",
        "test_position_rows_are_the_official_ones",
        "test_position_tables_add_up_to_the_official_sums",
    )


def test_acceptance_03_golden_features_losses_and_logits():
    assert_stands(
        "models/cavmae/test_golden.py",
        "test_base_features_are_the_official_ones",
        "test_base_losses_are_the_official_ones",
        "test_base_masks_and_predictions_are_the_official_ones",
    )
    assert_stands(
        "models/cavmae/test_classifier.py",
        "test_base_logits_are_the_official_ones",
        "test_logits_of_every_mode_are_the_official_ones",
    )


@pytest.fixture(scope="module", params=["module.", ""], ids=["prefixed", "bare"])
def base_file(request, tmp_path_factory) -> Path:
    """A pretrained base model in an official file: names and shapes as they are, every value zero, one byte in all."""
    with torch.device("meta"):
        entries = CAVMAE(ModelConfig()).state_dict()
    path = tmp_path_factory.mktemp("official") / "base.pth"
    torch.save({request.param + name: torch.zeros(()).expand(t.shape) for name, t in entries.items()}, path)
    return path


def test_acceptance_04_prefixed_and_bare_files_load_strictly_and_a_classifier_lacks_4_and_leaves_173(base_file):
    weights = load_official(base_file)
    assert (weights.kind, weights.model, len(weights.tensors)) == ("pretrain", ModelConfig(), 647)

    written: list[torch.Tensor] = []
    with torch.device("meta"):
        classifier = CAVMAEFT(ModelConfig(), 527)
    origin = start_from(
        classifier, InitConfig(from_checkpoint=base_file), ModelConfig(), lambda p, _: written.append(p)
    )

    assert (len(origin.missing), len(origin.unexpected), len(written)) == (4, 173, 647 - 173)
    assert all(name.startswith("mlp_head.") for name in origin.missing)
    assert_stands(
        "models/cavmae/test_state_dict.py",
        "test_an_official_file_comes_back_bit_by_bit",
        "test_names_under_another_prefix_or_spelling_are_refused_not_trained_from_scratch",
    )
    assert_stands("weights/test_init.py", "test_a_classifier_takes_all_but_the_decoder_and_keeps_its_fresh_head")


def test_acceptance_04_classifiers_have_478_and_252_entries():
    with torch.device("meta"):
        assert len(CAVMAEFT(ModelConfig(), 309).state_dict()) == 478
        assert len(CAVMAEFTAudio(ModelConfig(), 527).state_dict()) == 252


def test_acceptance_05_adaptation_of_an_mae():
    assert_stands("models/cavmae/test_mae.py", "test_every_row_of_the_adaptation_and_nothing_else")


def test_acceptance_06_kept_counts_and_structured_counts():
    assert_stands(
        "models/common/test_masking.py",
        "test_as_many_patches_are_kept_as_officially",
        "test_structured_masks_choose_the_official_columns_and_rows",
    )


def test_acceptance_07_the_direction_of_the_contrastive_loss():
    assert_stands("tasks/pretrain/test_losses.py", "test_the_contrastive_loss_looks_from_image_to_sound_as_officially")


def test_acceptance_08_the_filter_bank():
    assert_stands(
        "data/transforms/test_log_mel.py",
        "test_values_are_the_official_ones",
        "test_padding_is_louder_than_silence",
        "test_only_the_fourth_mel_bin_is_empty_and_nyquist_counts_for_nothing",
    )


def test_acceptance_09_the_table_of_frames():
    assert_stands("data/prepare/test_prepare_windows.py", "test_the_official_rule_picks_the_frames_of_its_table")


def test_acceptance_10_label_vectors_and_fallbacks():
    assert_stands("data/transforms/test_augment.py", "test_acceptance_10_label_vectors_mixed_and_unmixed")
    assert_stands("training/test_bad_clips.py", "test_a_damaged_clip_is_counted_named_and_bounded")


EPOCHS_AT = {  # recipe -> peak, (epochs, first drop after, drop every), rate of each epoch over the peak: spec 4.2, 4.3
    "pretraining, base": (5e-5, (25, 10, 5), [1] * 10 + [1 / 2] * 5 + [1 / 4] * 5 + [1 / 8] * 5),
    "AS-20K": (5e-5, (15, 5, 1), [1] * 5 + [2.0**-drops for drops in range(1, 11)]),
    "AS-2M": (1e-5, (10, 2, 1), [1] * 2 + [2.0**-drops for drops in range(1, 9)]),
    "VGGSound": (1e-4, (10, 2, 1), [1] * 2 + [2.0**-drops for drops in range(1, 9)]),
}


@pytest.mark.parametrize("recipe", EPOCHS_AT)
def test_acceptance_11_the_learning_rate_of_each_epoch(recipe):
    peak, (epochs, start, every), shares = EPOCHS_AT[recipe]
    optim = OptimConfig(
        name="adam", learning_rate=peak, schedule="step", decay_start_epoch=start, decay_every_epochs=every
    )
    steps = 7  # of an epoch: the rate is the same in all of them

    trace = [
        peak * learning_rate_share(step, optim, epochs * steps, steps, global_batch=48)
        for step in range(epochs * steps)
    ]

    assert trace == pytest.approx([peak * share for share in shares for _ in range(steps)], rel=1e-12)
    assert trace[steps * start - 1] == peak and trace[steps * start] == peak / 2


@pytest.mark.parametrize(
    ("recipe", "ratio", "head"), [("AS-20K", 100, 5e-3), ("AS-2M", 50, 5e-4), ("VGGSound", 10, 1e-3)]
)
def test_acceptance_11_the_learning_rates_of_head_and_encoder(recipe, ratio, head):
    sizes = ModelConfig(preset="tiny")
    with torch.device("meta"):
        model = CAVMAEFT(sizes, 5)
    peak = EPOCHS_AT[recipe][0]
    optim = OptimConfig(name="adam", learning_rate=peak)
    values = {"train": {"epochs": 1}, "model": {"preset": "tiny"}, "classifier": {"head_lr_ratio": ratio}}
    cfg = validate_run(values, "finetune")

    built = build_optimizer(
        model.named_parameters(), optim, peak, torch.device("cpu"),
        Finetuning.lr_scale(cfg),
    )  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in built.param_groups for p in group["params"]}

    assert rates.keys() == dict(model.named_parameters()).keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(head if name.startswith("mlp_head.") else peak, rel=1e-12), name


def test_acceptance_12_chunks_of_a_batch_are_the_official_gpus():
    assert_stands(
        "training/test_same_mathematics.py",
        "test_the_official_gpus_are_parts_of_the_batch",
    )
    assert_stands("tasks/pretrain/test_losses.py", "test_the_mean_over_ranks_is_the_loss_of_the_whole_batch")


def test_acceptance_13_what_a_mode_does_not_use_does_not_move():
    assert_stands(
        "tasks/finetune/test_same_finetuning.py",
        "test_acceptance_13_what_a_mode_does_not_use_stays_and_all_else_moves",
        "test_a_linear_probe_moves_the_head_alone",
    )


def test_acceptance_14_averaged_weights():
    assert_stands(
        "tasks/finetune/test_finetuning.py",
        "test_acceptance_14_averaged_weights_are_the_mean_of_those_after_each_epoch_of_the_range",
    )


def test_acceptance_14_probabilities_are_averaged_over_ten_frames():
    assert_stands(
        "evaluation/test_evaluate_command.py",
        "test_averaged_weights_are_scored_by_the_mean_probability_of_ten_frames_in_every_mode",
    )


def test_acceptance_15_retrieval_with_and_without_ties():
    assert_stands(
        "evaluation/test_retrieval.py",
        "test_the_rank_of_the_partner_counts_those_before_it",
        "test_a_tie_counts_against_the_query_so_a_collapsed_model_ranks_last",
        "test_scores_equal_a_double_loop_over_random_features_with_ties",
    )


def test_acceptance_16_inpainting_keeps_visible_patches():
    assert_stands(
        "evaluation/test_inpainting.py",
        "test_acceptance_16_visible_patches_stay_bit_for_bit_and_hidden_ones_are_the_predictions",
    )

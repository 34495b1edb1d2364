"""`cavmae plan` as a user types it."""

from __future__ import annotations

import json
import sys

import pytest

from cavmae_ds import cli
from tests.ranks import CHECKOUT

RECIPES = sorted((CHECKOUT / "launch" / "recipes").glob("*.yaml"))
BASE = str(CHECKOUT / "launch" / "recipes" / "base.yaml")


def run(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["cavmae", "plan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    return capsys.readouterr().out


def refusal(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["cavmae", "plan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("cavmae: error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("figure", ["--memory-gib", "--tflops", "--bandwidth-tbs", "--link-gbs"])
@pytest.mark.parametrize("value", ["inf", "1e300", "nan", "0"])
def test_a_figure_that_no_gpu_has_is_refused_by_its_option(figure, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cavmae", "plan", BASE, "--clips", "1772023", figure, value])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert f"Invalid value for '{figure}'" in capsys.readouterr().err


def test_a_batch_of_billions_is_planned_in_seconds(monkeypatch, capsys):
    batch = "train.global_batch=20000000000", "train.micro_batch=10000000000"
    assert "GiB" in run(monkeypatch, capsys, BASE, "model.preset=tiny", *batch, "--gpus", "2", "--clips", str(10**12))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(recipe, monkeypatch, capsys):
    shallow = "model.modality_specific_depth=2"  # as many blocks, as long does it take
    plan = json.loads(run(monkeypatch, capsys, str(recipe), shallow, "--clips", "1772023", "--gpus", "2", "--json"))
    assert plan["configured"]["fits"] and plan["recommended"]["fits"]


def test_a_finetuning_can_be_planned(monkeypatch, capsys):
    asked = str(RECIPES[0].parent / "official" / "finetune-as20k.yaml"), "model.modality_specific_depth=2"
    plan = json.loads(run(monkeypatch, capsys, *asked, "--clips", "18691", "--gpus", "4", "--json"))
    assert plan["configured"]["fits"] and plan["configured"]["compared_with"] == 0
    assert [each["name"] for each in plan["alternatives"]] == ["plain", "checkpoint"]
    said = run(monkeypatch, capsys, *asked, "--clips", "18691", "--gpus", "4")
    assert "no clip meets another" in said and "model.checkpoint_towers=" in said


def test_the_document_keeps_its_keys(monkeypatch, capsys):
    plan = json.loads(run(monkeypatch, capsys, BASE, "--clips", "100000", "--gpus", "4", "--json"))
    assert plan["version"] == 2 and plan["prediction"] is True
    assert set(plan) == {
        "version", "prediction", "notes", "gpu", "gpus", "gpus_per_node", "mfu", "usable_bytes", "parameters",
        "trainable_parameters", "flops_per_clip", "global_batch", "precision", "steps", "configured", "alternatives",
        "recommended", "weak_scaling", "assumptions",
    }  # fmt: skip
    assert set(plan["configured"]) == {
        "name", "ds_config", "zero_stage", "micro_batch", "switches", "overrides", "fits", "largest_micro_batch",
        "compared_with", "extra_flops", "bytes", "received_bytes_per_step",
        "seconds_per_step", "clips_per_second", "days",
    }  # fmt: skip
    assert set(plan["configured"]["bytes"]) == {
        "states_weights", "states_gathered", "states_gradients", "states_optimizer", "states_average", "states_buckets",
        "states", "inputs", "activations", "across_clips", "total", "host",
    }  # fmt: skip
    sizes = plan["configured"]["bytes"]
    assert sizes["total"] == sizes["states"] + sizes["inputs"] + sizes["activations"] + sizes["across_clips"]


def test_the_tables_say_that_they_predict_and_what_to_type(monkeypatch, capsys):
    said = run(monkeypatch, capsys, BASE, "train.global_batch=16384", "--clips", "1772023", "--gpus", "1")
    assert said.count("predicted") >= 4 and "nothing measured on these GPUs" in said
    assert "contrastive.two_pass=true" in said and "every clip meets 16,384 of its step" in said


def test_what_is_recommended_can_be_typed_back(monkeypatch, capsys):
    asked = BASE, "train.global_batch=16384", "--clips", "1772023", "--gpus", "8", "--json"
    recommended = json.loads(run(monkeypatch, capsys, *asked))["recommended"]
    again = json.loads(run(monkeypatch, capsys, *asked, *recommended["overrides"]))
    assert again["configured"]["bytes"] == recommended["bytes"]
    assert again["configured"]["compared_with"] == 16_384


def test_the_average_of_the_weights_and_lions_single_moment_are_counted(monkeypatch, capsys):
    asked = BASE, "--clips", "100000", "--gpus", "1", "--json"
    plain, averaged, lion = (
        json.loads(run(monkeypatch, capsys, *asked, *more))
        for more in ([], ["train.ema_clips=100000"], ["optim.name=lion"])
    )
    fp32 = 4 * plain["trainable_parameters"]
    assert averaged["configured"]["bytes"]["states_average"] == fp32
    assert plain["configured"]["bytes"]["states_optimizer"] == 3 * fp32
    assert lion["configured"]["bytes"]["states_optimizer"] == 2 * fp32


@pytest.mark.parametrize(
    ("gpus", "more", "micro_batch"),
    [
        (64, [], 4),  # 256 clips of 64 GPUs: 4 each
        (3, ["train.global_batch=288"], 32),  # the run file's own
        (2, ["train.global_batch=40"], 20),  # of 20 clips each
        (2, ["train.micro_batch=4", "contrastive.negatives=chunk=2", "train.global_batch=64"], 16),  # chunks of 32
    ],
)
def test_a_micro_batch_that_the_gpus_cannot_take_is_replaced_by_the_largest_below_that_they_can(
    gpus, more, micro_batch, monkeypatch, capsys
):
    asked = BASE, *more, "--gpus", str(gpus), "--clips", "1772023"
    plan = json.loads(run(monkeypatch, capsys, *asked, "--json"))
    own = next((int(word.split("=")[1]) for word in more if word.startswith("train.micro_batch")), 32)
    assert plan["configured"]["micro_batch"] == micro_batch
    assert len(plan["notes"]) == (micro_batch != own)
    said = run(monkeypatch, capsys, *asked)
    assert ("write train.micro_batch: " in said) == (micro_batch != own)


def test_a_run_that_only_fits_with_other_switches_is_planned_with_them(monkeypatch, capsys):
    asked = BASE, "--gpu", "l40s", "--gpus", "8", "--memory-gib", "1.0", "--clips", "1772023"
    plan = json.loads(run(monkeypatch, capsys, *asked, "--json"))
    assert plan["recommended"]["fits"] and not plan["configured"]["fits"]
    (note,) = plan["notes"]
    assert "does not fit on 8 x l40s even at train.micro_batch: 1" in note
    assert f"it fits with {' '.join(plan['recommended']['overrides'])}" in note


REFUSALS = {
    "unknown GPU": (["--gpu", "b200"], ["--gpu", "'b200'", "h200, h100, a100-80, l40s, custom"]),
    "custom GPU half described": (["--gpu", "custom", "--tflops", "100"], ["--memory-gib", "--link-gbs"]),
    "batch not divisible": (["--gpus", "7"], ["train.global_batch", "32 x 7 = 224", "224 or 448 would fit"]),
    "data set of unknown size": (["--clips", "0"], ["--clips", "data.train"]),
    "too little memory, nothing helps": (
        ["--gpu", "l40s", "--gpus", "8", "--memory-gib", "0.3"],
        ["no switch changes that", "take GPUs with more memory"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_impossible_is_refused_with_what_would_be_possible(case, monkeypatch, capsys):
    arguments, expected = REFUSALS[case]
    said = refusal(monkeypatch, capsys, BASE, "--clips", "1772023", *arguments)
    assert all(part in said for part in expected), said


@pytest.mark.parametrize(("days", "shown"), [(0.051, "0.051 (1.2)"), (0.9, "0.9 (22)"), (12.3, "12.30 (295)")])
def test_days_are_shown_with_their_hours(days, shown):
    from cavmae_ds.plan.tables import _duration

    assert _duration(days) == shown

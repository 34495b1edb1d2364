"""Sizes by name: published widths, overridden by what stands beside the name; every recipe loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from cavmae_ds.config.load import to_yaml
from cavmae_ds.models.cavmae.config import PRESETS
from cavmae_ds.plan.states import count
from cavmae_ds.tasks import load_run, validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from tests.ranks import CHECKOUT, PRETRAIN, environment

TRAIN = {"global_batch": 8, "micro_batch": 4, "steps": 3}
RECIPES = sorted((CHECKOUT / "launch" / "recipes").glob("*.yaml"))


def run_config(**sections) -> PretrainConfig:
    return validate_run({"train": TRAIN, **sections})


@pytest.mark.parametrize(
    ("preset", "width", "depth", "heads", "millions"),
    [
        ("tiny", 192, 12, 3, 13),
        ("base", 768, 12, 12, 191),
        ("large", 1024, 24, 16, 620),
        ("huge", 1280, 32, 16, 1270),
        ("giant", 1408, 40, 16, 2000),
    ],
)
def test_a_preset_has_its_published_encoder_and_about_so_many_parameters(preset, width, depth, heads, millions):
    cfg = run_config(model={"preset": preset})
    model = cfg.model
    assert (model.embed_dim, model.modality_specific_depth + model.shared_depth) == (width, depth)
    assert model.num_heads == heads and width % heads == 0 and model.patch_size == 16
    assert count(cfg).total / 1e6 == pytest.approx(millions, rel=0.05)


def test_base_by_name_is_what_the_defaults_are():
    assert run_config(model={"preset": "base"}).model.model_copy(update={"preset": None}) == run_config().model


def test_the_mlps_of_giant_are_6144_wide():
    model = run_config(model={"preset": "giant"}).model
    assert int(model.embed_dim * model.mlp_ratio) == 6144


def test_keys_beside_a_preset_override_it():
    model = run_config(model={"preset": "large", "decoder_depth": 2, "num_heads": 32}).model
    assert (model.decoder_depth, model.num_heads, model.embed_dim) == (2, 32, 1024)


@pytest.mark.parametrize("sections", [{"model": {"preset": name}} for name in PRESETS] + [{"optim": {"name": "lion"}}])
def test_the_resolved_config_loads_again_as_it_is(sections, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(run_config(**sections)))
    assert load_run(tmp_path / "config.yaml", "pretrain") == run_config(**sections)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_writes(recipe):
    cfg = load_run(recipe, "pretrain")
    assert cfg.run_dir.name != "default"
    written = yaml.safe_load(recipe.read_text())
    assert {"run_dir", "train"} <= written.keys()


def test_a_dry_run_shows_the_sizes_and_the_rate_that_a_recipe_comes_to(tiny_shards, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"data: {{train: {tiny_shards}}}\n"
        "model: {preset: tiny, image_size: 64, audio_frames: 64}\n"
        "optim: {learning_rate: 1e-4, lr_rule: sqrt, reference_batch: 2, warmup_clips: 12}\n"
        "train: {global_batch: 8, micro_batch: 4, steps: 3}\n"
    )
    shown = subprocess.run(
        [sys.executable, PRETRAIN, tmp_path / "run.yaml", "--dry-run"],
        capture_output=True, text=True, env=environment(tmp_path), cwd=CHECKOUT,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    for line in ("embed_dim: 192", "decoder_depth: 4", "# peak_learning_rate: 0.0002", "# warmup_steps: 2"):
        assert line in shown.stdout

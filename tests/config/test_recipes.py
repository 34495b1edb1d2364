"""The rows of docs/reproduce.md, against the published numbers: spec/cav-mae.md 3.3, 4.1 and 4.2, transcribed here."""

from __future__ import annotations

import re
import shlex
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from cavmae_ds.checkpoint.identity import identity
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.tasks import load_run
from cavmae_ds.tasks.finetune.task import Finetuning
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.tasks.run_plan import RunPlan
from cavmae_ds.training.optim.schedule import learning_rate_share
from tests.ranks import CHECKOUT

RECIPES = CHECKOUT / "launch" / "recipes"
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
RANKS = 4
AS_2M, AS_20K, VGGSOUND = 1_772_023, 18_691, 183_727


class Row(NamedTuple):
    """What a row of a table says to start."""

    recipe: Path
    overrides: list[str]


def _row(recipe: str, overrides: str) -> Row:
    official = RECIPES / "official" / recipe
    return Row(official if official.exists() else RECIPES / recipe, overrides.split())


TABLES = (CHECKOUT / "docs" / "reproduce.md").read_text(encoding="utf-8")
ROWS = {name: _row(*rest) for name, *rest in re.findall(r"^\| ([^|]+) \| `([\w+-]+\.yaml)([^`|]*)` \|", TABLES, re.M)}


class PretrainingRow(NamedTuple):
    clips: int
    batch: int
    pool: int
    rates: list[tuple[float, int]]
    """Learning rate, and how many epochs it holds."""
    steps_per_epoch: int
    image_ratio: float = 0.75
    audio_ratio: float = 0.75
    audio_mode: str = "unstructured"
    contrastive_weight: float = 0.01
    direction: str = "v2a"
    normalise_pixels: bool = True


def falling(rate: float) -> list[tuple[float, int]]:
    """25 epochs of pretraining: start 10, step 5, x 0.5."""
    return [(rate, 10), (rate / 2, 5), (rate / 4, 5), (rate / 8, 5)]


BASE = PretrainingRow(AS_2M, 48, 12, [(5e-5, 10), (2.5e-5, 5), (1.25e-5, 5), (6.25e-6, 5)], 36_917)
SCALE_PLUS = PretrainingRow(AS_2M, 120, 30, falling(1e-4), 14_766)
SCALE_PLUS_PLUS = PretrainingRow(AS_2M, 256, 64, falling(2e-4), 6_921)
PRETRAINING = {
    "base": BASE,
    "scale+": SCALE_PLUS,
    "scale+ of the paper": SCALE_PLUS._replace(batch=108, pool=27, steps_per_epoch=16_407),
    "scale++": SCALE_PLUS_PLUS,
    "scale++ as released": SCALE_PLUS_PLUS._replace(rates=[(2e-4, 10), (1e-4, 5), (5e-5, 5), (2.5e-5, 1)]),
    "VGGSound from ImageNet": PretrainingRow(VGGSOUND, 120, 30, falling(1e-4), 1_531),
    "VGGSound from AudioSet": PretrainingRow(VGGSOUND, 120, 30, [(5e-5, 10)], 1_531),
    "masking 50 %": BASE._replace(image_ratio=0.5, audio_ratio=0.5),
    "masking 65 %": BASE._replace(image_ratio=0.65, audio_ratio=0.65),
    "masking 85 %": BASE._replace(image_ratio=0.85, audio_ratio=0.85),
    "masking time": BASE._replace(audio_mode="time"),
    "masking frequency": BASE._replace(audio_mode="freq"),
    "masking both": BASE._replace(audio_mode="tf"),
    "masking both, 50 %": BASE._replace(audio_mode="tf", image_ratio=0.5, audio_ratio=0.5),
    "contrastive weight 0.001": BASE._replace(contrastive_weight=0.001),
    "contrastive weight 0.1": BASE._replace(contrastive_weight=0.1),
    "both directions": SCALE_PLUS._replace(direction="both"),
    "no normalisation of patches": BASE._replace(normalise_pixels=False),
}


class FinetuningRow(NamedTuple):
    clips: int
    classes: int
    rate: float
    head_rate: float
    full_epochs: int
    """Epochs before the first halving; one halving after each epoch from then on."""
    epochs: int
    batch: int
    steps_per_epoch: int
    averaged: tuple[int, int]
    balanced: bool
    loss: str
    metric: str
    mode: str = "multimodal"
    frames: int = 10


AS20K = FinetuningRow(AS_20K, 527, 5e-5, 5e-3, 5, 15, 36, 519, (3, 15), False, "bce", "map")
AS2M = FinetuningRow(AS_2M, 527, 1e-5, 5e-4, 2, 10, 48, 36_917, (1, 10), True, "bce", "map")
VGG = FinetuningRow(VGGSOUND, 309, 1e-4, 1e-3, 2, 10, 48, 3_827, (3, 10), True, "ce", "accuracy")
FINETUNING = {
    "AS-20K": AS20K,
    "AS-20K, sound": AS20K._replace(mode="audioonly", frames=1),
    "AS-20K, frames": AS20K._replace(mode="videoonly"),
    "AS-2M": AS2M,
    "AS-2M, sound": AS2M._replace(mode="audioonly", frames=1),
    "VGGSound": VGG,
    "VGGSound after both": VGG,
    "VGGSound alone": VGG,
    "VGGSound after both, sound": VGG._replace(mode="audioonly"),
}
BEYOND = {"batch 256, one pool": 256, "large batch": 4096, "large": 4096, "huge": 4096, "giant": 4096}


@cache
def _class_names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


def _rates(cfg: RunConfig, numbers: RunPlan) -> list[tuple[float, int]]:
    """Learning rates of the run's epochs, each with how many epochs it holds; the same from first to last step."""
    each = []
    for epoch in range(cfg.train.epochs or 0):
        first, last = epoch * numbers.steps_per_epoch, (epoch + 1) * numbers.steps_per_epoch - 1
        shares = {
            learning_rate_share(step, cfg.optim, numbers.total_steps, numbers.steps_per_epoch, cfg.train.global_batch)
            for step in (first, last)
        }
        assert len(shares) == 1
        each.append(numbers.peak_learning_rate * shares.pop())
    return [(rate, len(list(epochs))) for rate, epochs in groupby(each)]


def _assert_the_official_optimizer(cfg: RunConfig) -> None:
    optim = cfg.optim
    assert (optim.name, optim.beta1, optim.beta2, optim.eps) == ("adam", 0.95, 0.999, 1e-8)
    assert (optim.weight_decay, optim.clip_grad_norm, optim.warmup_clips) == (5e-7, 0, 0)
    assert (cfg.data.audio_mean, cfg.data.audio_std, cfg.model.audio_frames) == (-5.081, 4.4849, 1024)


def test_every_row_of_the_page_is_checked_here_and_every_recipe_has_one():
    assert ROWS.keys() == PRETRAINING.keys() | FINETUNING.keys() | BEYOND.keys()
    used = {row.recipe for row in ROWS.values()}
    own = {RECIPES / "quickstart.yaml", RECIPES / "small.yaml"}  # of data that nobody has published figures of
    assert used == set(RECIPES.rglob("*.yaml")) - own


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_row_comes_to_the_published_numbers(name):
    expected, row = PRETRAINING[name], ROWS[name]
    cfg = load_run(row.recipe, "pretrain", row.overrides)
    numbers = Pretraining.resolve(cfg, RANKS, expected.clips)
    epochs = sum(count for _, count in expected.rates)

    assert _rates(cfg, numbers) == [(pytest.approx(rate), count) for rate, count in expected.rates]
    assert (numbers.steps_per_epoch, numbers.total_steps) == (
        expected.steps_per_epoch,
        expected.steps_per_epoch * epochs,
    )
    assert (cfg.train.global_batch, numbers.accumulation) == (expected.batch, 1)
    assert identity(cfg, numbers)["clips compared with each other"] == expected.pool == cfg.monitor.validate_batch
    assert (cfg.mask.image_ratio, cfg.mask.audio_ratio, cfg.mask.audio_mode) == (
        expected.image_ratio,
        expected.audio_ratio,
        expected.audio_mode,
    )
    assert (cfg.loss.mae_weight, cfg.loss.contrastive_weight) == (1.0, expected.contrastive_weight)
    assert (cfg.loss.normalise_pixels, cfg.contrastive.direction) == (expected.normalise_pixels, expected.direction)
    assert cfg.augment.noise and cfg.data.sampling == "natural" and not cfg.model.trainable_positions
    assert numbers.parameters == 191_036_160
    assert cfg.init.given
    _assert_the_official_optimizer(cfg)


@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_row_comes_to_the_published_numbers(name):
    expected, row = FINETUNING[name], ROWS[name]
    cfg = load_run(row.recipe, "finetune", [*row.overrides, f"classifier.classes={expected.classes}"])
    numbers = Finetuning.resolve(cfg, RANKS, expected.clips)

    halved = range(expected.epochs - expected.full_epochs)
    rates = [(expected.rate, expected.full_epochs)] + [(expected.rate / 2 ** (times + 1), 1) for times in halved]
    assert _rates(cfg, numbers) == [(pytest.approx(rate), count) for rate, count in rates]
    head = numbers.peak_learning_rate * Finetuning.lr_scale(cfg)("mlp_head.1.weight")
    assert head == pytest.approx(expected.head_rate)
    assert Finetuning.lr_scale(cfg)("blocks_a.0.attn.qkv.weight") == 1
    assert (numbers.steps_per_epoch, numbers.accumulation) == (expected.steps_per_epoch, 1)
    assert cfg.train.global_batch == expected.batch
    assert (cfg.average.from_epoch, cfg.average.to_epoch) == expected.averaged
    assert (cfg.data.sampling == "balanced") == expected.balanced
    assert (cfg.loss.kind, cfg.evaluate.metric, cfg.evaluate.frames) == (
        expected.loss,
        expected.metric,
        expected.frames,
    )
    assert (cfg.classifier.mode, cfg.classifier.freeze_base, cfg.loss.label_smoothing) == (expected.mode, False, 0.1)
    assert (cfg.augment.mixup, cfg.augment.freqm, cfg.augment.timem, cfg.augment.noise) == (0.5, 48, 192, True)
    assert numbers.classes == expected.classes
    _assert_the_official_optimizer(cfg)


@pytest.mark.parametrize("name", BEYOND)
def test_a_row_beyond_the_official_ones_compares_all_clips_of_a_step(name):
    row = ROWS[name]
    cfg = load_run(row.recipe, "pretrain", row.overrides)
    numbers = Pretraining.resolve(cfg, 8, AS_2M)
    assert cfg.train.global_batch == identity(cfg, numbers)["clips compared with each other"] == BEYOND[name]


def test_what_a_recipe_begins_with_is_what_another_one_leaves():
    runs = {load_run(path, _task(path)).run_dir for path in RECIPES.rglob("*.yaml")}
    for path in (RECIPES / "official").glob("*.yaml"):
        begins = load_run(path, _task(path)).init
        assert begins.from_mae or begins.from_checkpoint in runs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_docs_start_recipes_that_load(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"^(?:deepspeed|cavmae|python) .*launch/recipes/.*", text, re.M):
        words = shlex.split(command, comments=True)
        recipe = next(CHECKOUT / word for word in words if word.endswith(".yaml"))
        load_run(recipe, _task(recipe), [word for word in words if re.match(r"\w[\w.]*=", word)])


def _task(recipe: Path) -> str:
    return "finetune" if recipe.stem.startswith("finetune-") else "pretrain"

"""`--dry-run`: a recipe is looked at without its data, and what its start would refuse is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cavmae_ds import train_cli
from cavmae_ds.doctor.examine import Asked, own_findings, run_findings
from cavmae_ds.doctor.finding import Verdict
from cavmae_ds.tasks import validate_run
from tests.ranks import CHECKOUT

RECIPES = sorted((CHECKOUT / "launch" / "recipes").rglob("*.yaml"))
SIZES = {"embed_dim": 32, "num_heads": 4, "image_size": 64, "audio_frames": 64}


def started(monkeypatch, capsys, command, *arguments: object) -> tuple[int | str | None, str]:
    """Exit code, and what was printed: of the run, or why not."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        train_cli.main(command)
    said = capsys.readouterr()
    return stopped.value.code, said.out or said.err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_looked_at_without_data_and_first_weights(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = train_cli.finetune_command if recipe.stem.startswith("finetune") else train_cli.pretrain_command
    code, shown = started(monkeypatch, capsys, command, recipe, "--dry-run", "--ranks", 2, "--clips", 1_772_023)
    assert code == 0, shown
    assert "# clips: 1772023\n" in shown and "# ranks: 2\n" in shown
    assert command is train_cli.pretrain_command or "# classes: 527\n" in shown


@pytest.fixture
def run_file(tmp_path, tiny_shards, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{train: {tiny_shards}}}\nmodel: {SIZES}\ntrain: {{global_batch: 8, steps: 3}}\n")
    return path


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["init.from_mae=mae.pth"], "cannot read 'mae.pth': No such file or directory"),
        (["init.from_checkpoint=runs/base"], "'runs/base' holds no weights: give a run folder, an official .pth"),
        (["init.from_checkpoint=empty"], "run folder 'empty' holds no checkpoint"),
        (["data.train=shards/as2m"], "shards/as2m: no such folder; give the folder or s3://bucket/prefix that"),
    ],
)
def test_what_is_not_there_is_said_before_the_start(overrides, expected, run_file, monkeypatch, capsys):
    Path("empty").mkdir()
    arguments = [run_file, "train.micro_batch=4", *overrides]
    code, said = started(monkeypatch, capsys, train_cli.pretrain_command, *arguments, "--dry-run")
    assert code == 2 and expected in said and said.count("\n") == 1, said


def test_a_number_of_clips_is_for_dry_runs_only(run_file, monkeypatch, capsys):
    code, said = started(monkeypatch, capsys, train_cli.pretrain_command, run_file, "--clips", 5)
    assert code == 2 and said == (
        "pretrain: error: --clips is for --dry-run, got --clips without it; add --dry-run or leave --clips out\n"
    )


def test_the_doctor_finds_first_weights_that_are_not_there(tiny_shards, tmp_path):
    values = {"data": {"train": str(tiny_shards)}, "model": SIZES, "train": {"steps": 3, "global_batch": 32}}
    cfg = validate_run(values | {"init": {"from_mae": tmp_path / "mae.pth"}}, "pretrain")
    found = {each.name: each for each in run_findings(Asked(cfg, True, (), 0.0, 60.0, {}))}
    assert found["init"].verdict == Verdict.FIX and "cannot read" in found["init"].found


def test_the_doctor_needs_no_run_file():
    found = own_findings(Asked(validate_run({"train": {"epochs": 1}}, "pretrain"), False, (), 0.0, 60.0, {}), 0)
    assert {"device", "packages", "run_dir", "Triton"} <= {each.name for each in found}
    assert not any("could not be checked" in each.found for each in found)

"""`cavmae report`: of every kind of run, however far it has come, and with scores that name what they are of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.config.load import to_yaml
from cavmae_ds.errors import ConfigError
from cavmae_ds.evaluation import report_command
from cavmae_ds.monitor.log import LOG
from cavmae_ds.tasks import validate_run
from tests.evaluation.test_evaluate_command import evaluate
from tests.weights.small_models import run_folder, small_model

COMMAND = "python3 launch/pretrain.py --local_rank=0 my.yaml train.steps=20"
START = {"time": 0.0, "step": 0, "event": "start", "numbers": {"total_steps": 20}, "environment": {"command": COMMAND}}
PRETRAINED = [
    START,
    {"time": 9.0, "step": 5, "loss/total": 4.0, "loss/contrastive": 2.5, "perf/clips_per_second": 80.0},
    {"time": 9.5, "step": 10, "loss/total": 1.0, "loss/contrastive": None, "perf/clips_per_second": 90.0},
]
FINETUNED = [
    START,
    {"time": 9.0, "step": 10, "loss/total": 0.75, "train/accuracy": 0.25},
    {"time": 9.1, "step": 10, "validation/total": 0.7, "validation/map": 0.625, "validation/accuracy": 0.5},
    {"time": 9.2, "step": 20, "validation/total": 0.8, "validation/map": 0.375, "validation/accuracy": 0.5},
    {"time": 9.3, "step": 20, "event": "end"},
]


def begun(folder: Path, task: str, lines: list[dict]) -> Path:
    """A run folder with its settings and its log."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"run_dir": str(folder), "data": {"train": "shards/mine"}, "checkpoint": {"every_steps": 1000}}
    length = {"steps": 20} if task == "pretrain" else {"epochs": 2}
    values |= {"train": length | {"global_batch": 8, "micro_batch": 8}}
    values |= {} if task == "pretrain" else {"classifier": {"mode": "multimodal"}}
    (folder / "config.yaml").write_text(to_yaml(validate_run(values, task)))
    if lines:
        (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    """Nothing folds: rows are read by their names."""
    monkeypatch.setattr(report_command.console, "width", 200)


def report(folder: Path) -> str:
    finished = CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    return finished.output


def row(printed: str, name: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith(f"│ {name}"))


@pytest.mark.parametrize("lines", [[], [START], PRETRAINED[:2]], ids=["no log", "no curve", "one point"])
def test_a_run_without_a_checkpoint_is_reported_and_to_be_gone_on_with(lines, tmp_path):
    printed = report(begun(tmp_path / "run", "pretrain", lines))
    assert "none yet; one every 1000 steps" in row(printed, "checkpoint")
    assert ("loss/total" in printed) == (lines == PRETRAINED[:2])
    resumed = "my.yaml train.steps=20" if lines else str(tmp_path / "run" / "config.yaml")
    assert f"  deepspeed launch/pretrain.py {resumed}\n" in printed and "tensorboard --logdir" in printed
    assert "cavmae evaluate" not in printed


def test_scores_of_an_older_step_and_of_other_clips_are_named_as_such(tmp_path, tiny_shards):
    folder = run_folder(tmp_path / "run", small_model("pretrain"))  # a checkpoint of step 10
    begun(folder, "pretrain", PRETRAINED)
    evaluate(folder, "--data", tiny_shards)
    assert json.loads((folder / "retrieval.json").read_text())["step"] == 10

    printed = report(folder)

    assert "4.000 -> 1.000" in row(printed, "loss/total") and "10 of 20" in row(printed, "steps")
    assert f"step 10; data {tiny_shards} " in row(printed, "retrieval.json")
    assert "R@1" in row(printed, "V->A retrieval among 24 clips")
    for command in ("evaluate", "inpaint", "features", "export", "compare"):
        assert f"\n  cavmae {command} {folder}" in printed
    assert f"--data {tiny_shards}" in printed and f"init.from_checkpoint={folder}" in printed
    assert "custom scalars" in printed and "MY_VIDEOS" not in printed

    later = {"time": 10.0, "step": 15, "loss/total": 0.5}
    begun(folder, "pretrain", [*PRETRAINED, later])
    assert "step 10, not of the run's newest step 15" in report(folder)

    scores = json.loads((folder / "retrieval.json").read_text())
    (folder / "retrieval.json").write_text(json.dumps({k: v for k, v in scores.items() if k != "step"}))
    (folder / "ema.retrieval.json").write_text("[")
    printed = report(folder)
    assert "step unknown; data" in row(printed, "retrieval.json")
    assert "cannot be read" in row(printed, "ema.retrieval.json")


def test_a_finetuning_run_is_reported_by_its_own_curves_and_scores(tmp_path, tiny_shards):
    folder = run_folder(tmp_path / "run", small_model("finetune"))
    begun(folder, "finetune", FINETUNED)
    evaluate(folder, "--data", tiny_shards, "--mode", "audioonly")

    printed = report(folder)

    assert "finetuning, finished" in row(printed, "run") and "20 of 20" in row(printed, "steps")
    assert "0.625 -> 0.375; best 0.625 at step 10" in row(printed, "validation/map")
    assert "0.700 -> 0.800; best 0.700 at step 10" in row(printed, "validation/total")
    assert "step 10, not of the run's newest step 20" in row(printed, "classification.json")
    scores = json.loads((folder / "classification.json").read_text())["modes"]["audioonly"]
    expected = f"mAP {scores['mean_average_precision']:.1%}, accuracy {scores['accuracy']:.1%}"
    assert expected in row(printed, "audioonly, 24 clips")
    assert "--mode all" in printed and "inpaint" not in printed and "go on to the last step" not in printed


def test_what_is_no_run_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.yaml; give what run_dir names$"):
        report(tmp_path)

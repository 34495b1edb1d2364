"""`cavmae compare`: runs of any batch side by side, with what differs between them; what is no run is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.compare.draw import draw, names_with_differences
from cavmae_ds.compare.runs import differences, load_runs
from cavmae_ds.config.load import to_yaml
from cavmae_ds.errors import UserError
from cavmae_ds.monitor.log import LOG
from cavmae_ds.tasks import validate_run

HOUR = 3600


def run_folder(folder: Path, *, batch: int, rate: float = 1e-4, points: int = 5) -> Path:
    """A folder as pretraining leaves it; a point every second step and every hour."""
    folder.mkdir(parents=True)
    config = {"run_dir": str(folder), "train": {"steps": 900, "global_batch": batch, "micro_batch": 8}}
    (folder / "config.yaml").write_text(to_yaml(validate_run(config | {"optim": {"learning_rate": rate}})))
    lines = [{"time": 0.0, "step": 0, "event": "start"}]
    lines += [{"time": n * HOUR, "step": 2 * n, "loss/total": 1 / n, "perf/mfu": 0.1 * n} for n in range(1, points + 1)]
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def add(folder: Path, *lines: dict) -> None:
    with (folder / LOG).open("a") as log:
        log.writelines(json.dumps(line) + "\n" for line in lines)


def rows_of(printed: str) -> dict[str, list[list[str]]]:
    """First cell -> the other cells of its row and of those below it that have none."""
    rows: dict[str, list[list[str]]] = {}
    for line in printed.splitlines():
        name, *cells = re.split(" {2,}", line.rstrip().removeprefix(" "))
        if cells:
            rows.setdefault(name or list(rows)[-1], []).append(cells)
    return rows


def test_scores_of_finetuned_runs_are_compared_and_no_name_is_broken_at_80_columns(tmp_path):
    runs = [run_folder(tmp_path / f"finetuned_run_{name}", batch=8) for name in "abcdefgh"]
    for run in runs:
        add(run, {"time": 6 * HOUR, "step": 5, "validation/map": 0.75, "validation/accuracy": 0.25})
        add(run, {"time": 7 * HOUR, "step": 10, "validation/map": 0.5, "probe/audio_to_image_recall_at_1": 0.0312})

    printed = compare(*runs, "--out", tmp_path / "c.png")

    assert max(map(len, printed.splitlines()[:-1])) <= 80
    rows = rows_of(printed)
    tags = ["loss/total", "validation/map", "validation/accuracy", "probe/audio_to_image_recall_at_1"]
    assert [name for name in rows if "/" in name] == tags
    assert rows["validation/map"] == [[run.name, "0.5 (10)", "0.75 (5)"] for run in runs]


def compare(*arguments: str | Path) -> str:
    finished = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    return finished.output


def test_runs_of_different_batch_are_drawn_by_clips_with_their_best_values_and_what_differs(tmp_path):
    runs = run_folder(tmp_path / "small", batch=8), run_folder(tmp_path / "large", batch=64, rate=4e-4, points=3)

    said = compare(*runs, "--by", "clips", "--out", tmp_path / "new" / "c.png", "--tags", "loss/total,perf/mfu")

    with Image.open(tmp_path / "new" / "c.png") as picture:
        assert picture.format == "PNG" and picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100  # lines and letters
    rows = rows_of(said)
    assert rows["loss/total"] == [["small", "0.2 (10)", "0.2 (10)"], ["large", "0.3333 (6)", "0.3333 (6)"]]
    assert rows["perf/mfu"][0] == ["small", "0.5 (10)", "0.5 (10)"]  # the highest is best
    assert rows["optim.learning_rate"] == [["small", "0.0001"], ["large", "0.0004"]]
    assert "train.global_batch" in rows and "run_dir" not in rows and "train.steps" not in rows
    found = load_runs(runs)
    assert found[0].axis("loss/total", "clips") == [16, 32, 48, 64, 80]
    assert found[1].axis("loss/total", "clips") == [128, 256, 384]
    assert names_with_differences(found) == [
        "small: learning_rate 0.0001, global_batch 8", "large: learning_rate 0.0004, global_batch 64",
    ]  # fmt: skip


def test_hours_of_training_count_neither_pauses_nor_steps_that_were_done_again(tmp_path):
    folder = run_folder(tmp_path / "a", batch=8)  # five hours, ten steps
    add(
        folder,
        {"time": 100 * HOUR, "step": 6, "event": "resume"},  # of the checkpoint after three hours
        {"time": 101 * HOUR, "step": 8, "loss/total": 0.25},
        {"time": 101.5 * HOUR, "step": 8, "event": "bad clip", "line": "clip 'x'"},
        {"time": 102 * HOUR, "step": 10, "loss/total": None},
        {"time": 103 * HOUR, "step": 12, "loss/total": 0.1},
    )

    (run,) = load_runs([folder])

    assert run.axis("loss/total", "steps") == [2, 4, 6, 8, 12]  # what is no number is no point
    assert run.axis("loss/total", "time") == pytest.approx([1, 2, 3, 4, 6])


def test_runs_with_the_same_settings_are_said_to_be_alike_and_one_without_points_is_no_obstacle(tmp_path):
    runs = (
        run_folder(tmp_path / "a" / "run", batch=8, points=500),
        run_folder(tmp_path / "b" / "run", batch=8, points=0),
    )

    said = compare(*runs, "--by", "time", "--out", tmp_path / "c.png")

    assert "all settings are the same" in said
    found = load_runs(runs)
    assert [run.name for run in found] == [str(folder) for folder in runs]  # their own names are the same
    assert differences(found) == {}
    drawn = draw(found, ["loss/total"], "time").axes[0]
    assert [len(line.get_xdata()) for line in drawn.lines if len(line.get_xdata())] == [500, 491]  # and their mean


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a"], ["two run folders", "got 1"]),
        (["a", "no/where"], ["'no/where' is no run folder", "config.yaml"]),
        (["a", "empty"], ["log.jsonl", "'empty'", "run folder"]),
        (["a", "b", "--tags", "loss/totl"], ["'loss/totl'", "loss/total"]),
        (["a", "b", "--by", "weeks"], ["steps, clips, time", "'weeks'"]),
        (["a", "b", "--out", "c.pdf"], [".png", "'c.pdf'"]),
        (["a", "b", "--out", "a/config.yaml/c.png"], ["cannot write", "config.yaml/c.png"]),
        (["mute", "mute"], ["has drawn a loss"]),
        (["a", "alien"], ["'alien/config.yaml'", "train.global_batch"]),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(Path("a"), batch=8)
    run_folder(Path("b"), batch=8)
    run_folder(Path("mute"), batch=8, points=0)
    run_folder(Path("empty"), batch=8)
    Path("empty", LOG).unlink()
    Path("alien").mkdir()
    Path("alien", "config.yaml").write_text("a: {b: 1}")

    with pytest.raises(UserError) as refusal:
        CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False)

    assert all(part in str(refusal.value) for part in named), refusal.value
    assert "\n" not in str(refusal.value)

"""The README's first command does what it says: it is the first thing that anybody tries."""

from __future__ import annotations

import json
import subprocess

import pytest
from PIL import Image

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.evaluation.roc_curves import read_curves
from tests.ranks import CHECKOUT


@pytest.mark.slow
def test_the_quickstart_learns_and_leaves_what_it_promises_and_a_second_run_starts_at_once(tmp_path):
    folder = tmp_path / "a place with blanks"
    command = [str(CHECKOUT / "launch" / "quickstart.sh"), str(folder)]

    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)

    assert first.returncode == 0, first.stdout + first.stderr
    scores = json.loads((folder / "run" / "retrieval.json").read_text())
    assert scores["pool"] == 96 and scores["chance_class_precision_at_1"] == 0.125
    for direction in ("audio_to_image", "image_to_audio"):
        assert scores[direction]["class_precision_at_1"] >= 3 * scores["chance_class_precision_at_1"]
    losses = read_curves(folder / "run")["loss/total"]
    assert losses[max(losses)] < 0.6 * losses[min(losses)]
    assert [folder.name for folder in whole_checkpoints(folder / "run")] == ["step-00000300", "step-00000400"]
    with Image.open(folder / "run" / "reconstructions.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # not a blank page
    for promised in (
        "loss/total, first and last",
        "V->A retrieval",
        "A->V retrieval",
        "clips/s",
        "checkpoint",
        "Next:",
    ):
        assert promised in first.stdout

    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    assert second.returncode == 0, second.stdout + second.stderr
    assert "Installing" not in second.stdout and "complete already" in second.stdout
    assert "resumed from" in second.stdout + second.stderr
    assert read_curves(folder / "run")["loss/total"] == losses

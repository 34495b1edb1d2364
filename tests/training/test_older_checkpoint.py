"""A run that commit 16bcd9e began goes on: tests/golden/run_of_16bcd9e has its shards and its checkpoint of step 4.

curves.json is what that commit drew of steps 5 to 8, on one rank under ZeRO-2.
"""

from __future__ import annotations

import json
import shutil

import pytest

from cavmae_ds.monitor.log import read_log
from tests.ranks import CHECKOUT, PRETRAIN, fork_ranks

MADE = CHECKOUT / "tests" / "golden" / "run_of_16bcd9e"


@pytest.mark.parametrize("script", [PRETRAIN, PRETRAIN.with_name("train.py")], ids=["pretrain.py", "train.py"])
def test_a_checkpoint_of_an_older_commit_goes_on_with_the_curves_of_that_commit(tmp_path, script):
    shutil.copytree(MADE / "shards", tmp_path / "shards")
    shutil.copytree(MADE / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(MADE / "run.yaml", tmp_path)

    finished = fork_ranks(1, script, "run.yaml", scratch=tmp_path, cwd=tmp_path)

    assert finished.returncode == 0, finished.stdout
    assert "resumed from step 4" in finished.stdout
    points = [point for point in read_log(tmp_path / "run") if "event" not in point]
    for curve, expected in json.loads((MADE / "curves.json").read_text()).items():
        drawn = {str(point["step"]): point[curve] for point in points if curve in point}
        assert drawn == pytest.approx(expected, rel=1e-5, abs=1e-7), curve  # bit by bit on the same machine

"""A run that draws every curve of pretraining."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.small_shards import small_shards
from tests.monitor.runs import run_file
from tests.ranks import PRETRAIN, fork_ranks


@pytest.fixture(scope="session")
def everything(tiny_shards, tmp_path_factory) -> Path:
    """The folder of a run on two ranks that draws everything; validation on 7 clips of its own."""
    folder = tmp_path_factory.mktemp("monitored")
    small_shards(tiny_shards, folder / "held", range(3, 10), shard_clips=4)
    finished = fork_ranks(
        2, PRETRAIN, run_file(folder, tiny_shards, workers=1), f"data.validation={folder / 'held'}",
        "monitor.pictures_every=2", "monitor.validate_every=2", "monitor.validate_batch=2", "monitor.probe_every=3",
        scratch=folder,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    (folder / "said.txt").write_text(finished.stdout)
    return folder / "run"

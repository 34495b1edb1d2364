"""Under ZeRO-3 a model is made in shards: no rank ever holds it whole, and it trains as one that was made whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.ranks import fork_ranks
from tests.training.giant_worker import SHARDED

WORKER = Path(__file__).with_name("giant_worker.py")
RANKS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("giant")
    finished = fork_ranks(RANKS, WORKER, str(folder), scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return folder


@pytest.mark.parametrize("rank", range(RANKS))
def test_no_rank_ever_holds_the_model_whole(folder, rank):
    found = json.loads((folder / f"memory-{rank}.json").read_text())
    assert found["plain"] + found["sharded"] > found["whole"] > 100 * 2**20, found  # it would show
    assert found["sharded"] < 0.6 * found["whole"], found


@pytest.mark.parametrize(("fragment", "precision"), SHARDED)
def test_a_model_made_in_shards_starts_and_trains_as_one_made_whole(folder, fragment, precision):
    results = torch.load(folder / "results.pt", weights_only=True)
    sharded, plain = results[f"{fragment}-{precision}"], results[f"plain-{precision}"]
    assert sharded["start"].keys() == plain["start"].keys()
    for name, value in plain["start"].items():
        assert torch.equal(sharded["start"][name], value), name
    for name, value in plain["end"].items():
        torch.testing.assert_close(
            sharded["end"][name], value, rtol=1e-6, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert not torch.equal(plain["start"]["blocks_a.0.attn.qkv.weight"], plain["end"]["blocks_a.0.attn.qkv.weight"])

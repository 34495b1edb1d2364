"""Ranks, the ZeRO stage and micro-batches do not change what finetuning computes; what is not trained stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cavmae_ds.models.cavmae.classifier import MODES
from tests.ranks import fork_ranks
from tests.tasks.finetune.finetune_problem import CLASSES, Way, finetune_on_one_process, fresh_model

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("finetune_worker.py")
ON_ONE_RANK = [Way(), Way(accumulation=2), Way(kind="ce", accumulation=2)]
ON_TWO_RANKS = [
    Way(2, stage=0), Way(2, stage=1, accumulation=2), Way(2, stage=2, kind="ce"), Way(2, stage=3, accumulation=2),
    *(Way(2, mode=mode) for mode in MODES),
    *(Way(2, stage=3, mode=mode, freeze_base=True) for mode in ("multimodal", "audioonly")),
    Way(2, stage=3, mode="audioonly", model="audio"),
]  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> dict[Way, dict]:
    """What ranks found in each way."""
    found = {}
    for ranks, ways in ((1, ON_ONE_RANK), (2, ON_TWO_RANKS)):
        folder = tmp_path_factory.mktemp(f"finetuned-{ranks}")
        (folder / "ways.json").write_text(json.dumps(ways))
        finished = fork_ranks(ranks, WORKER, str(folder), scratch=folder)
        assert finished.returncode == 0, finished.stdout
        found |= zip(ways, torch.load(folder / "results.pt", weights_only=True), strict=True)
    return found


def test_any_way_to_finetune_is_that_of_one_plain_process_with_the_whole_batch(finetuned):
    assert len(finetuned) == len(ON_ONE_RANK) + len(ON_TWO_RANKS)
    for way, result in finetuned.items():
        losses, parameters = finetune_on_one_process(way)
        torch.testing.assert_close(result["losses"], torch.stack(losses).double(), rtol=1e-5, atol=1e-7)
        for name, parameter in result["parameters"].items():
            torch.testing.assert_close(parameter, parameters[name], rtol=1e-5, atol=1e-5, msg=f"{way}, {name}")


@pytest.mark.parametrize("mode", MODES)
def test_acceptance_13_what_a_mode_does_not_use_stays_and_all_else_moves(mode, finetuned):
    way = Way(2, mode=mode)
    before = fresh_model(way.config())
    unused = before.unused_parameters(mode)
    assert unused, "every mode leaves out the norms of some pass"
    for name, parameter in before.named_parameters():
        moved = not torch.equal(finetuned[way]["parameters"][name], parameter)
        assert moved != (name in unused), f"{mode}, {name}"


def test_the_audio_model_hears_and_has_nothing_else(finetuned):
    way = Way(2, stage=3, mode="audioonly", model="audio")
    both, hears = (set(finetuned[one]["parameters"]) for one in (Way(2, mode="audioonly"), way))
    assert hears < both and {name.split(".")[0] for name in both - hears} == {
        "modality_v", "pos_embed_v", "patch_embed_v", "blocks_v", "norm_v",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["multimodal", "audioonly"])
def test_a_linear_probe_moves_the_head_alone(mode, finetuned):
    way = Way(2, stage=3, mode=mode, freeze_base=True)
    for name, parameter in fresh_model(way.config()).named_parameters():
        moved = not torch.equal(finetuned[way]["parameters"][name], parameter)
        assert moved == name.startswith("mlp_head."), name
    assert finetuned[way]["parameters"]["mlp_head.1.weight"].shape[0] == CLASSES

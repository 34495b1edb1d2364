"""A run goes on with any ranks at any ZeRO stage: bit by bit from where it was, to where it would have come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cavmae_ds.checkpoint import read_weights, whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.layout import FROZEN, PieceReader
from tests.checkpoint.world_worker import CELLS, SAVED_AT, STAGES, Cell
from tests.ranks import fork_ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("world_worker.py")
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two ranks save half-way and go on; four resume from the same checkpoints, save again and go on."""
    folder = tmp_path_factory.mktemp("worlds")
    for name, section in STAGES.items():
        fragment = {"zero_optimization": section, "zero_force_ds_cpu_optimizer": False}
        (folder / f"{name}.json").write_text(json.dumps(fragment))
    for ranks, what in ((2, "saved"), (4, "resumed")):
        if what == "resumed":
            shutil.copytree(folder / "saved", folder / "resumed")
        finished = fork_ranks(ranks, WORKER, str(folder), what, scratch=folder)
        assert finished.returncode == 0, finished.stdout
    return folder


def results(folder: Path, cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the run that nobody stopped, and of the one that others took up."""
    return tuple(torch.load(folder / f"{what}.pt", weights_only=True)[cell.name] for what in ("saved", "resumed"))  # type: ignore[return-value]


def everything(run_dir: Path) -> tuple[dict[tuple[str, str], Tensor], dict[str, Any]]:
    """All values of the only checkpoint of a run, whole, and its numbers."""
    (folder,) = whole_checkpoints(run_dir)
    manifest = read_manifest(folder)
    reader = PieceReader(sorted(manifest.files), folder.joinpath)
    found = {}
    for name, parameter in manifest.parameters.items():
        for state in manifest.states if parameter.trained else [FROZEN]:
            dtype = getattr(torch, parameter.dtype) if state == FROZEN else torch.float32
            found[state, name] = torch.zeros(parameter.shape, dtype=dtype)
            reader.read(state, name, 0, found[state, name].view(-1))
    return found, {"step": manifest.step, **manifest.scalars}


@each_cell
def test_what_other_ranks_at_another_stage_save_right_after_a_resume_is_what_was_saved(folder, cell):
    saved, resumed = (everything(folder / what / cell.name) for what in ("saved", "resumed"))
    assert saved[0].keys() == resumed[0].keys()
    for key, values in saved[0].items():
        assert torch.equal(resumed[0][key], values), key
    assert resumed[1] == saved[1]
    assert saved[1]["optimizer"] == ({} if cell.optimizer in ("lion", "lars") else {"step": SAVED_AT})


@each_cell
def test_a_checkpoint_holds_the_weights_that_the_ranks_hold(folder, cell):
    for what, result in zip(("saved", "resumed"), results(folder, cell), strict=True):
        weights = read_weights(folder / what / cell.name)
        assert weights.keys() == result["saved"].keys() | result["buffers"].keys()
        for name, value in result["saved"].items():
            assert torch.equal(weights[name], value), f"{what}: {name}"


@each_cell
def test_buffers_are_saved_and_resumed(folder, cell):
    for what, result in zip(("saved", "resumed"), results(folder, cell), strict=True):
        assert result["buffers"]["batches"].item() == 2**40 + 1
        assert result["buffers"]["running_mean"].tolist() == [[0, 1], [2, 3], [4, 5]]
        weights = read_weights(folder / what / cell.name)
        assert weights["batches"].dtype == torch.int64
        for name, values in result["buffers"].items():
            assert torch.equal(weights[name], values.to(weights[name].dtype)), name


@each_cell
def test_the_model_computes_with_the_weights_rounded_to_the_run_s_precision(folder, cell):
    before, after = results(folder, cell)
    for name, value in before["computed"].items():
        assert value.dtype == (torch.bfloat16 if cell.precision == "bf16" else torch.float32)
        assert torch.equal(after["computed"][name], value), name


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.precision == "fp32"], ids=lambda cell: cell.name)
def test_the_run_ends_where_it_would_have_ended(folder, cell):
    undisturbed, resumed = results(folder, cell)
    assert resumed["start"] == SAVED_AT
    for kind in ("weights", "means"):
        for name, value in undisturbed[kind].items():
            torch.testing.assert_close(
                resumed[kind][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )

"""What any ranks wrote, any others read: stretches of parameters, however they are cut."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from cavmae_ds.checkpoint.layout import MASTER, Piece, PieceReader, rank_file
from cavmae_ds.checkpoint.manifest import DamagedCheckpoint
from cavmae_ds.errors import CheckpointError

SIZES = {"blocks_a.0.attn.qkv.weight": 30, "norm.weight": 7, "cls_token": 1}


def cuts(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """A parameter's elements in stretches [start, stop), none empty."""
    places = st.sets(st.integers(1, size - 1)) if size > 1 else st.just(set())
    return places.map(lambda inner: list(zip([0, *sorted(inner)], [*sorted(inner), size], strict=True)))


@st.composite
def written(draw: st.DrawFn) -> list[list[Piece]]:
    """The pieces of some parameters and two states, spread over 1 to 5 ranks in any way."""
    ranks: list[list[Piece]] = [[] for _ in range(draw(st.integers(1, 5)))]
    for number, state in enumerate((MASTER, "exp_avg"), start=1):
        for name, size in SIZES.items():
            whole = torch.arange(size) + 1000.0 * number
            for start, stop in draw(cuts(size)):
                ranks[draw(st.integers(0, len(ranks) - 1))].append(Piece(state, name, start, whole[start:stop].clone()))
    return ranks


def save(ranks: list[list[Piece]], folder: Path) -> list[str]:
    """Each rank's file; none for a rank without pieces, as the writer does it."""
    names = []
    for rank, pieces in enumerate(ranks):
        if pieces:
            names.append(rank_file(rank, len(ranks)))
            save_file({piece.key: piece.values for piece in pieces}, folder / names[-1])
    return names


def read(reader: PieceReader, state: str, name: str, stretches: list[tuple[int, int]]) -> Tensor:
    parts = []
    for start, stop in stretches:
        parts.append(torch.full((stop - start,), torch.nan))
        reader.read(state, name, start, parts[-1])
    return torch.cat(parts)


@settings(max_examples=60, deadline=None)
@given(ranks=written(), data=st.data())
def test_any_cuts_by_any_ranks_are_read_in_any_other_cuts(ranks, data):
    with TemporaryDirectory() as folder:
        names = save(ranks, Path(folder))
        readers = data.draw(st.integers(1, 5))
        reader = PieceReader(names, Path(folder).joinpath, data.draw(st.integers(0, readers - 1)), readers)
        for number, state in enumerate((MASTER, "exp_avg"), start=1):
            for name, size in SIZES.items():
                found = read(reader, state, name, data.draw(cuts(size)))
                assert found.equal(torch.arange(size) + 1000.0 * number)


@settings(max_examples=20, deadline=None)
@given(ranks=written(), data=st.data())
def test_a_missing_piece_is_named(ranks, data):
    with TemporaryDirectory() as folder:
        rank = data.draw(st.sampled_from([rank for rank in ranks if rank]))
        lost = rank.pop(data.draw(st.integers(0, len(rank) - 1)))
        reader = PieceReader(save(ranks, Path(folder)), Path(folder).joinpath)
        first, last = lost.offset, lost.offset + len(lost.values)
        with pytest.raises(CheckpointError, match=f"elements {first} to {last} of {lost.state} {lost.parameter}"):
            read(reader, lost.state, lost.parameter, [(0, SIZES[lost.parameter])])


def test_a_rank_opens_no_other_files_than_it_needs(tmp_path):
    ranks = [[Piece(MASTER, "weight", 10 * rank, torch.full((10,), float(rank)))] for rank in range(8)]
    names, opened = save(ranks, tmp_path), []

    def path(name: str) -> Path:
        opened.append(name)
        return tmp_path / name

    values = torch.empty(20)
    PieceReader(names, path, rank=2, ranks=4).read(MASTER, "weight", 40, values)

    assert values.equal(torch.tensor([4.0] * 10 + [5.0] * 10))
    assert opened == [rank_file(4, 8), rank_file(5, 8)]


def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path):
    (tmp_path / rank_file(0, 1)).write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"rank-00000-of-00001\.safetensors.*cannot be read"):
        PieceReader([rank_file(0, 1)], tmp_path.joinpath).read(MASTER, "weight", 0, torch.empty(3))


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.ones(2, 3)])
def test_a_tensor_that_is_no_vector_is_damage(values, tmp_path):
    name = rank_file(0, 1)
    save_file({f"{MASTER}:weight:0": values}, tmp_path / name)
    with pytest.raises(DamagedCheckpoint, match=name):
        PieceReader([name], tmp_path.joinpath).locate(MASTER, "weight", 0, 1)

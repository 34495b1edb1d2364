"""The contrastive loss by tiles, with kernels: as exact as with all logits at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels import contrastive_tiles
from cavmae_ds.kernels.contrastive import (
    Contrast,
    contrastive,
    contrastive_both,
    contrastive_both_reference,
    contrastive_reference,
)
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
DTYPES = torch.float32, torch.bfloat16, torch.float16
TEMPERATURE = 0.0625  # a power of two: eager's division then rounds nothing that could hide its other errors


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles, of several blocks each, from a few hundred logits."""
    monkeypatch.setattr(contrastive_tiles, "TILE_ROWS", 16)
    monkeypatch.setattr(contrastive_tiles, "TILE_COLUMNS", 32)
    monkeypatch.setattr(contrastive_tiles, "BLOCK_ROWS", 8)
    monkeypatch.setattr(contrastive_tiles, "BLOCK_COLUMNS", 16)


def unit_rows(rows: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=random), dim=1).to(dtype)


def all_alike(width: int, dtype: torch.dtype) -> bool:
    """Unit rows of width 1 are 1 or -1: equal candidates share a softmax, the true gradient cancels to nothing, and
    its last place measures nothing of a sum of terms that are each rounded to half precision."""
    return width == 1 and dtype != torch.float32


@settings(max_examples=15, deadline=None)
@given(
    b=st.integers(1, 40),
    more=st.integers(0, 70),
    width=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_one_direction_is_within_twice_eagers_error_at_ragged_sizes(b, more, width, dtype, data):
    assume(not all_alike(width, dtype))
    first_row = data.draw(st.integers(0, more))
    inputs = {
        "queries": unit_rows(b, width, dtype, 1),
        "candidates": unit_rows(b + more, width, dtype, 2),
        "first_row": first_row,
        "temperature": TEMPERATURE,
    }
    assert_as_accurate_as_eager(
        contrastive_reference, contrastive, inputs, ["queries", "candidates"], list(Contrast._fields)
    )


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 75), width=st.integers(1, 20), dtype=st.sampled_from(DTYPES))
def test_both_directions_are_within_twice_eagers_error_at_ragged_sizes(n, width, dtype):
    assume(not all_alike(width, dtype))
    inputs = {
        "audio": unit_rows(n, width, dtype, 1),
        "image": unit_rows(n, width, dtype, 2),
        "temperature": TEMPERATURE,
    }
    assert_as_accurate_as_eager(
        contrastive_both_reference, contrastive_both, inputs, ["audio", "image"], list(Contrast._fields)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_written(dtype, poisoned_memory):
    audio, image = unit_rows(45, 12, dtype, 1), unit_rows(45, 12, dtype, 2)
    both = {"audio": audio, "image": image, "temperature": 0.05}
    assert_as_accurate_as_eager(
        contrastive_both_reference, contrastive_both, both, ["audio", "image"], list(Contrast._fields)
    )
    one = {"queries": audio[7:30], "candidates": image, "first_row": 7, "temperature": 0.05}
    assert_as_accurate_as_eager(
        contrastive_reference, contrastive, one, ["queries", "candidates"], list(Contrast._fields)
    )


def test_equal_candidates_count_for_the_first_of_them():
    """Across blocks and tiles: candidates 5, 20 and 40 are the same row."""
    candidates = torch.eye(48)
    candidates[[20, 40]] = candidates[5].clone()
    hits = [contrastive(candidates[i : i + 1], candidates, i, 0.05).accuracy.item() for i in (5, 20, 40)]
    assert hits == [1, 0, 0]


def test_large_and_far_apart_logits_neither_overflow_nor_vanish():
    queries, candidates = 100 * unit_rows(20, 6, torch.float32, 1), 100 * unit_rows(50, 6, torch.float32, 2)
    fused = contrastive(queries, candidates, 3, 1.0).loss
    assert fused.isfinite()
    torch.testing.assert_close(fused, contrastive_reference(queries, candidates, 3, 1.0).loss)


@pytest.mark.parametrize("frozen", ["queries", "candidates"])
def test_a_side_that_needs_no_gradient_gets_none_and_the_other_its_own(frozen):
    rows = {"queries": unit_rows(20, 6, torch.float32, 1), "candidates": unit_rows(50, 6, torch.float32, 2)}
    trained = next(rows[name].requires_grad_() for name in rows if name != frozen)
    ours, theirs = (door(**rows, first_row=3, temperature=0.05) for door in (contrastive, contrastive_reference))
    got, expected = (torch.autograd.grad(outcome.loss, trained)[0] for outcome in (ours, theirs))
    torch.testing.assert_close(got, expected)
    assert not ours.accuracy.requires_grad


def test_the_gradient_survives_torch_compile():
    audio, image = (unit_rows(20, 6, torch.float32, seed).requires_grad_() for seed in (1, 2))

    def total(audio: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        one = contrastive(image.sin(), audio.sin(), 0, 0.05).loss
        return one + 2 * contrastive_both(audio.sin(), image.sin(), 0.05).loss

    expected = torch.autograd.grad(total(audio, image), (audio, image))
    got = torch.autograd.grad(torch.compile(total, backend="aot_eager")(audio, image), (audio, image))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(3)}, r"queries must be contiguous .* \[rows, D\], got float32 \[3\]"),
        ({"queries": torch.zeros(4, 3, dtype=torch.int64)}, "queries must be .* got int64"),
        ({"queries": torch.zeros(3, 4).T}, "not contiguous"),
        ({"queries": torch.zeros(0, 3)}, "must not be empty"),
        ({"candidates": torch.zeros(6, 2)}, r"candidates must be .* \[rows, 3\], got float32 \[6, 2\]"),
        ({"candidates": torch.zeros(6, 3).bfloat16()}, "candidates must be contiguous float32 .* got bfloat16"),
        ({"candidates": torch.zeros(6, 3, device="meta")}, "must lie on one device, got cpu and meta"),
        ({"first_row": 3}, "room for 4 partners among 6 candidates, got 3"),
        ({"first_row": -1}, "got -1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    inputs = {"queries": torch.zeros(4, 3), "candidates": torch.zeros(6, 3), "first_row": 2, "temperature": 0.05}
    with pytest.raises(ValueError, match=message):
        contrastive(**{**inputs, **change})


def test_both_directions_need_pairs():
    with pytest.raises(ValueError, match="must be pairs, got 4 and 6 rows"):
        contrastive_both(torch.zeros(4, 3), torch.zeros(6, 3), 0.05)

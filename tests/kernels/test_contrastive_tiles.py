"""The contrastive loss by tiles in plain torch: equal to all logits at once, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels import contrastive_tiles
from cavmae_ds.kernels.contrastive import (
    contrastive,
    contrastive_both,
    contrastive_both_reference,
    contrastive_reference,
)

MANY = """
import json, resource, torch
from cavmae_ds.kernels.contrastive import contrastive

torch.manual_seed(0)
queries, candidates = (torch.nn.functional.normalize(torch.randn(n, 32), dim=1) for n in (2100, 200_000))
queries.requires_grad_(), candidates.requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss, *_ = contrastive(queries, candidates, 150_000, 0.05)
loss.backward()
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024  # given in KiB
rows = slice(0, 50)
logits = queries[rows].detach().double() @ candidates.detach().double().T / 0.05
softmax = logits.softmax(1)
softmax[torch.arange(50), 150_000 + torch.arange(50)] -= 1
exact = softmax @ candidates.detach().double() / 0.05 / 2100
error = (queries.grad[rows].double() - exact).abs().max() / exact.abs().max()
print(json.dumps([growth, loss.item(), error.item(), bool(candidates.grad.isfinite().all())]))
"""


def pairs(count: int, width: int = 16, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sides that resemble one another, as trained ones do."""
    random = torch.Generator().manual_seed(count)
    audio, other = (torch.randn(count, width, generator=random) for _ in range(2))
    rows = [torch.nn.functional.normalize(x, dim=1).to(dtype) for x in (audio, audio + other)]
    return rows[0].requires_grad_(), rows[1].requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_4096_clips_the_tiles_give_the_dense_loss_accuracy_and_gradients(dtype):
    audio, image = pairs(4096, dtype=dtype)
    assert not contrastive_tiles.fits_one_tile(4096, 4096)
    tiled = contrastive(image, audio, 0, 0.05), contrastive_both(audio, image, 0.05)
    dense = contrastive_reference(image, audio, 0, 0.05), contrastive_both_reference(audio, image, 0.05)
    for ours, theirs in zip(tiled, dense, strict=True):
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
        assert ours[1:] == theirs[1:]
        got, expected = (torch.autograd.grad(x.loss, (audio, image)) for x in (ours, theirs))
        for ours_side, their_side in zip(got, expected, strict=True):
            scale = their_side.abs().max().item()
            torch.testing.assert_close(ours_side, their_side, rtol=0, atol=1e-5 * scale)


@settings(max_examples=20, deadline=None)
@given(b=st.integers(1, 40), more=st.integers(0, 40), data=st.data())
def test_ragged_tiles_give_the_dense_loss(b, more, data):
    first_row = data.draw(st.integers(0, more))
    audio, _ = pairs(b + more, 5, torch.float64)
    _, image = pairs(b, 5, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive_tiles, "TILE_ROWS", 8)
        patch.setattr(contrastive_tiles, "TILE_COLUMNS", 16)
        if b * (b + more) > 8 * 16:
            assert not contrastive_tiles.fits_one_tile(b, b + more)
        tiled = contrastive(image, audio, first_row, 0.05)
        got = torch.autograd.grad(tiled.loss, (image, audio))
    dense = contrastive_reference(image, audio, first_row, 0.05)
    torch.testing.assert_close(tuple(tiled), tuple(dense))
    torch.testing.assert_close(got, torch.autograd.grad(dense.loss, (image, audio)))


@pytest.mark.slow
def test_two_hundred_thousand_candidates_take_bounded_memory():
    """Their logits alone would take 1.7 GB."""
    run = subprocess.run([sys.executable, "-c", MANY], check=True, capture_output=True, text=True)
    growth, loss, error, finite = json.loads(run.stdout)
    assert growth < 1.0e9
    assert 5 < loss < 30 and finite
    assert error < 1e-5

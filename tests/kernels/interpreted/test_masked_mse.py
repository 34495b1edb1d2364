"""The loss on hidden patches, computed straight from the raw input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels.masked_mse import masked_mse, masked_mse_reference
from cavmae_ds.models.common.patches import Grid, audio_to_patches, patchify, select
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
DTYPES = torch.float32, torch.bfloat16, torch.float16


def make_inputs(
    grid: Grid, hidden: int, prediction: torch.dtype, pictures: torch.dtype, log_mel: bool, seed: int = 0
) -> dict[str, Any]:
    """Three clips; the ids are a slice of a wider shuffle, as in a mask plan."""
    random = torch.Generator().manual_seed(seed)
    channels, height, width = grid.picture_shape
    shape = (3, width, height) if log_mel else (3, channels, height, width)
    drawn = torch.rand(shape, generator=random)
    shuffle = torch.rand(3, grid.patches, generator=random).argsort(1)
    return {
        "prediction": torch.randn(3, hidden, grid.values, generator=random).to(prediction),
        "pictures": (drawn * 255).round().to(torch.uint8) if pictures == torch.uint8 else drawn.to(pictures),
        "hidden": shuffle[:, grid.patches - hidden :],
        "grid": grid,
        "mean": [0.48, 0.45, 0.41][:channels],
        "std": [0.23, 0.22, 0.26][:channels],
        "normalise": True,
    }


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(2, 6),
    channels=st.sampled_from([1, 2, 3]),
    layout=st.sampled_from([torch.uint8, *DTYPES, "log-mel"]),
    dtype=st.sampled_from(DTYPES),
    normalise=st.booleans(),
    data=st.data(),
)
def test_loss_and_gradient_are_within_twice_eagers_error_at_ragged_sizes(
    rows, columns, patch, channels, layout, dtype, normalise, data
):
    log_mel = layout == "log-mel"
    grid = Grid(rows, columns, patch, 1 if log_mel else channels)
    hidden = data.draw(st.integers(1, grid.patches))
    pictures = torch.float32 if log_mel else layout
    inputs = {**make_inputs(grid, hidden, dtype, pictures, log_mel, seed=rows + hidden), "normalise": normalise}
    assert_as_accurate_as_eager(masked_mse_reference, masked_mse, inputs, ["prediction"], ["loss"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [Grid(2, 3, 16, 3), Grid(2, 3, 16, 1), Grid(2, 2, 5, 3)])
def test_every_element_is_written(grid, dtype, poisoned_memory):
    for log_mel in {False, grid.channels == 1}:
        inputs = make_inputs(grid, 3, dtype, torch.float32, log_mel)
        assert_as_accurate_as_eager(masked_mse_reference, masked_mse, inputs, ["prediction"], ["loss"])


@pytest.mark.parametrize("log_mel", [False, True])
@pytest.mark.parametrize("door", [masked_mse, masked_mse_reference])
def test_a_prediction_that_is_the_models_own_patches_has_no_error(door, log_mel):
    grid = Grid(3, 4, 4, 1 if log_mel else 3)
    inputs = {**make_inputs(grid, 5, torch.float32, torch.float32, log_mel), "normalise": False}
    inputs |= {"mean": [0.0] * grid.channels, "std": [1.0] * grid.channels}
    patches = audio_to_patches(inputs["pictures"], grid) if log_mel else patchify(inputs["pictures"], grid)
    inputs["prediction"] = select(patches, inputs["hidden"])
    assert door(**inputs) == 0


def test_the_gradient_of_a_small_loss_survives_float16():
    """2 / (B H P) of these sizes is below float16's smallest number: a loss scale must be able to lift it."""
    inputs = make_inputs(Grid(8, 8, 8, 3), 60, torch.float16, torch.float32, log_mel=False)
    prediction = inputs["prediction"].requires_grad_()
    (gradient,) = torch.autograd.grad(masked_mse(**inputs) * 2.0**12, prediction)
    exact = prediction.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(masked_mse_reference(**{**inputs, "prediction": exact}) * 2.0**12, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=1e-7)


def test_backward_twice_gives_the_gradient_twice():
    inputs = make_inputs(Grid(2, 2, 4, 3), 3, torch.float32, torch.float32, log_mel=False)
    prediction = inputs["prediction"].requires_grad_()
    loss = masked_mse(**inputs)
    first, second = (torch.autograd.grad(loss, prediction, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 0


def test_the_gradient_survives_torch_compile():
    inputs = make_inputs(Grid(2, 2, 4, 3), 3, torch.float32, torch.uint8, log_mel=False)
    prediction = inputs["prediction"].requires_grad_()

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return 3 * masked_mse(**{**inputs, "prediction": prediction.sin()})

    (expected,) = torch.autograd.grad(loss(prediction), prediction)
    (got,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(prediction), prediction)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": torch.zeros(3, 2, 47)}, r"prediction must be contiguous .* \[B, H, 48\], got float32"),
        ({"prediction": torch.zeros(3, 2, 48, dtype=torch.int64)}, "prediction must be .* got int64"),
        ({"prediction": torch.zeros(3, 48, 2).transpose(1, 2)}, "not contiguous"),
        ({"prediction": torch.zeros(3, 0, 48)}, "must hold a hidden patch"),
        ({"pictures": torch.zeros(3, 3, 8, 8)}, r"pictures must be .* \[3, 3, 8, 12\], got float32 \[3, 3, 8, 8\]"),
        ({"pictures": torch.zeros(3, 3, 8, 12, dtype=torch.int32)}, "pictures must be .* got int32"),
        ({"pictures": torch.zeros(3, 3, 8, 12, requires_grad=True)}, "pictures are data"),
        ({"hidden": torch.zeros(3, 2, dtype=torch.int32)}, r"hidden must be int64 \[3, 2\]"),
        ({"hidden": torch.zeros(3, 3, dtype=torch.int64)}, r"hidden must be int64 \[3, 2\]"),
        ({"mean": [0.0, 0.0]}, "one number or 3, one per channel, got 2"),
        ({"grid": Grid(2, 3, 4, 4)}, "1 to 3 channels"),
        ({"grid": Grid(2, 3, 1, 1)}, "one has no variance"),
        ({"pictures": torch.zeros(3, 3, 8, 12, device="meta")}, "one device"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    inputs = make_inputs(Grid(2, 3, 4, 3), 2, torch.float32, torch.float32, log_mel=False)
    with pytest.raises(ValueError, match=message):
        masked_mse(**{**inputs, **change})

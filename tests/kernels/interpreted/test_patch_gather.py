"""Patch gather: the kept patches of patchify, normalised, and nothing else read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels.patch_gather import patch_gather, patch_gather_reference
from cavmae_ds.models.common.patches import Grid, audio_to_patches, patchify, select, unpatchify
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def shuffled(clips: int, patches: int, kept: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(clips, patches, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(1)[:, :kept].contiguous()


def inputs_for(grid: Grid, clips: int, kept: int, pictures: torch.Tensor, out_dtype: torch.dtype) -> dict:
    keep, channels = shuffled(clips, grid.patches, kept), grid.channels
    return {
        "pictures": pictures,
        "keep": keep,
        "grid": grid,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "out_dtype": out_dtype,
    }


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_accurate(inputs: dict) -> None:
    assert_as_accurate_as_eager(patch_gather_reference, patch_gather, inputs, (), ("patches",))


GRIDS = st.builds(
    Grid, st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 7, 8]), st.integers(1, 3)
).flatmap(lambda grid: st.tuples(st.just(grid), st.integers(1, grid.patches)))


@settings(max_examples=20, deadline=None)
@given(cut=GRIDS, clips=st.integers(1, 3), raw=st.booleans(), out_dtype=st.sampled_from(FLOATS))
def test_images_of_any_grid_are_as_accurate_as_eager(cut, clips, raw, out_dtype):
    grid, kept = cut
    shape = (clips, *grid.picture_shape)
    pictures = pixels(*shape) if raw else torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert_accurate(inputs_for(grid, clips, kept, pictures, out_dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize(("grid", "kept"), [(Grid(8, 4, 16, 1), 7), (Grid(3, 7, 5, 1), 21), (Grid(1, 2, 2, 1), 1)])
def test_log_mels_are_turned_so_that_mel_is_the_row(dtype, out_dtype, grid, kept, poisoned_memory):
    _, mel_bins, frames = grid.picture_shape
    log_mel = torch.randn(2, frames, mel_bins, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert_accurate(inputs_for(grid, 2, kept, log_mel, out_dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_images_at_the_real_grid_with_poisoned_outputs(dtype, poisoned_memory):
    grid = Grid(14, 14, 16, 3)
    pictures = pixels(2, *grid.picture_shape).to(dtype)
    assert_accurate(inputs_for(grid, 2, 49, pictures, torch.bfloat16))


def test_values_that_need_no_rounding_are_patchifys_own():
    # given whole numbers, a mean of 0 and a deviation of 1, so that every step is exact
    image_grid, audio_grid = Grid(2, 3, 4, 3), Grid(4, 3, 4, 1)
    images = pixels(2, *image_grid.picture_shape).float()
    log_mel = pixels(2, 12, 16).float()
    for pictures, patches, grid in (
        (images, patchify(images, image_grid), image_grid),
        (log_mel, audio_to_patches(log_mel, audio_grid), audio_grid),
    ):
        keep, ones = shuffled(2, grid.patches, 3), (1.0,) * grid.channels
        # when gathered, then they are the model's patches in the model's order
        ours = patch_gather(pictures, keep, grid, (0.0,) * grid.channels, ones, torch.float32)
        assert torch.equal(ours, select(patches, keep))


def test_hidden_patches_do_not_matter_even_if_they_are_not_numbers():
    grid = Grid(2, 3, 4, 3)
    patches = torch.randn(1, 6, grid.values)
    keep = torch.tensor([[4, 1]])
    clean = patch_gather(unpatchify(patches, grid), keep, grid, MEAN, STD, torch.float32)
    patches[:, [0, 2, 3, 5]] = torch.nan
    assert torch.equal(patch_gather(unpatchify(patches, grid), keep, grid, MEAN, STD, torch.float32), clean)


def test_float64_goes_to_the_reference():
    grid = Grid(2, 3, 4, 3)
    inputs = inputs_for(grid, 1, 2, torch.randn(1, *grid.picture_shape).double(), torch.float64)
    assert torch.equal(patch_gather(**inputs), patch_gather_reference(**inputs))


def test_nothing_kept_gives_an_empty_tensor():
    grid = Grid(2, 3, 4, 3)
    assert patch_gather(**inputs_for(grid, 2, 0, pixels(2, 3, 8, 12), torch.float32)).shape == (2, 0, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": pixels(2, 3, 8, 8)}, r"pictures must be contiguous .* \[B, 3, 8, 12\], got uint8 \[2, 3, 8, 8\]"),
        ({"pictures": pixels(2, 3, 8, 12).int()}, "pictures must be contiguous uint8 or float32"),
        ({"pictures": pixels(2, 3, 12, 8).mT}, "pictures must be contiguous.* not contiguous"),
        ({"pictures": torch.zeros(2, 12, 8)}, "a log-mel has 1 channel, got a grid with 3"),
        ({"pictures": torch.zeros(2, 3, 8, 12, requires_grad=True)}, "pictures must not require grad"),
        ({"keep": torch.zeros(2, 1, dtype=torch.int32)}, "keep must be contiguous int64"),
        ({"keep": torch.zeros(1, 1, dtype=torch.int64)}, r"keep must be contiguous int64 \[2, K\]"),
        ({"grid": (2, 3, 4, 4)}, "grid must have 1 to 3 channels"),
        ({"mean": (0.5,)}, "each with a mean and a std, got .* with 1 means and 3 stds"),
        ({"out_dtype": torch.int32}, "out_dtype must be one of"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(change, message):
    arguments = inputs_for(Grid(2, 3, 4, 3), 2, 2, pixels(2, 3, 8, 12), torch.float32)
    with pytest.raises(ValueError, match=message):
        patch_gather(**{**arguments, **change})


def test_a_log_mel_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"pictures must be contiguous .* \[B, 12, 8\]"):
        patch_gather(torch.zeros(1, 8, 12), shuffled(1, 6, 2), Grid(2, 3, 4, 1), MEAN[:1], STD[:1], torch.float32)

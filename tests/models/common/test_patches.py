"""Patches: exact inverses, the official order, and the same tokens as a convolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, image_grid
from cavmae_ds.models.common.patches import (
    Grid,
    PatchProjection,
    Picture,
    audio_to_patches,
    patches_to_audio,
    patchify,
    select,
    unpatchify,
)
from cavmae_ds.models.common.positions import position_table

GRIDS = st.builds(Grid, st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))


@settings(max_examples=100, deadline=None)
@given(grid=GRIDS, clips=st.integers(1, 3))
def test_patchify_and_unpatchify_are_exact_inverses(grid, clips):
    pictures = torch.randn(clips, *grid.picture_shape)
    patches = patchify(pictures, grid)
    assert patches.shape == (clips, grid.patches, grid.values)
    assert torch.equal(unpatchify(patches, grid), pictures)
    assert torch.equal(patchify(unpatchify(patches, grid), grid), patches)


def test_a_patch_lists_row_then_column_then_channel():
    grid = Grid(rows=3, columns=4, patch=2, channels=3)
    pictures = torch.arange(6 * 8 * 3.0).reshape(1, 3, 6, 8)
    patches = patchify(pictures, grid)
    row, column, p, q, channel = 2, 1, 1, 0, 2
    expected = pictures[0, channel, row * 2 + p, column * 2 + q]
    assert patches[0, 4 * row + column, (2 * p + q) * 3 + channel] == expected


def test_a_log_mels_rows_are_mel_bands_and_its_columns_time():
    grid = audio_grid(ModelConfig())
    audio = torch.randn(2, 1024, 128)
    patches = audio_to_patches(audio, grid)
    band, moment, mel, frame = 5, 60, 3, 14
    assert patches[1, 64 * band + moment, 16 * mel + frame] == audio[1, 16 * moment + frame, 16 * band + mel]
    assert torch.equal(patches_to_audio(patches, grid), audio)


def test_only_visible_patches_are_embedded_and_as_the_convolution_would():
    grid = image_grid(ModelConfig())
    projection = PatchProjection(grid, width=32)
    images, keep = torch.randn(2, 3, 224, 224), torch.rand(2, 196).argsort(1)[:, :49].contiguous()
    positions, modality = torch.randn(196, 32), torch.randn(32)
    everything = torch.nn.functional.conv2d(images, projection.weight, projection.bias, stride=16)
    expected = select(everything.flatten(2).transpose(1, 2) + positions, keep) + modality
    picture = Picture(images, grid, (0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(projection(picture, keep, positions, modality), expected)


def test_a_picture_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(1, 128, 1024\), got \[1, 128, 1000\]"):
        audio_to_patches(torch.zeros(2, 1000, 128), audio_grid(ModelConfig()))
    with pytest.raises(ValueError, match=r"\[B, 512, 256\], got \[B, \[196, 768\]\]"):
        patches_to_audio(torch.zeros(2, 196, 768), audio_grid(ModelConfig()))


@pytest.mark.parametrize(
    ("table", "row", "expected"),
    [
        ("audio", 0, [0, 0, 1, 1, 0, 0, 1, 1]),
        ("audio", 1, [0.841471, 0.815251, 0.540302, 1, 0, 0, 1, 1]),
        ("audio", 64, [0, 0, 1, 1, 0.841471, 0.815251, 0.540302, 1]),
        ("audio", 511, [0.167356, -0.351280, 0.985897, 0.999978, 0.656987, 0.379215, 0.753902, 1]),
        ("image", 195, [0.420167, -0.174370, 0.907447, 0.999999] * 2),
    ],
)
def test_position_rows_are_the_official_ones(table, row, expected):
    shape = {"audio": (8, 64), "image": (14, 14)}[table]
    got = position_table(768, *shape)[0, row, [0, 1, 192, 383, 384, 385, 576, 767]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("width", "rows", "columns", "total"),
    [
        (768, 8, 64, 171206.7415),
        (768, 14, 14, 69594.4938),
        (512, 8, 64, 113997.0248),
        (512, 14, 14, 46340.3331),
    ],
)
def test_position_tables_add_up_to_the_official_sums(width, rows, columns, total):
    table = position_table(width, rows, columns)
    assert table.shape == (1, rows * columns, width) and table.dtype == torch.float32
    assert table.double().sum().item() == pytest.approx(total, abs=1e-4)

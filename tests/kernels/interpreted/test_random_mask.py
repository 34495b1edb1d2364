"""Random masks: the kernel's plan is the reference's, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.distributed.per_sample_rng import Stream
from cavmae_ds.kernels.random_mask import random_mask, random_mask_reference
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.common.masking import kept_patches, structured_counts
from cavmae_ds.models.common.patches import Grid
from tests.kernels.accuracy import needs_kernels

pytestmark = needs_kernels
BASE = Grid(8, 64, 16, 1)
SMALL = Grid(3, 5, 16, 1)


def random_keys(clips: int, seed: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """A run's seed, and epoch and clip index of each clip, over all they may be."""
    generator = torch.Generator().manual_seed(seed)
    run = int(torch.randint(0, 2**32, (), generator=generator))
    epoch, clip = (torch.randint(0, 2**bits, (clips,), generator=generator) for bits in (31, 39))
    return run, epoch, clip


def assert_same_plans(keys, grid: tuple[int, ...], kept: int, **options) -> None:
    ours, meant = (door(*keys, grid, kept, **options) for door in (random_mask, random_mask_reference))
    for name, x, y in zip(("keep", "hidden", "restore"), ours, meant, strict=True):
        assert x.dtype == y.dtype == torch.int64 and torch.equal(x, y), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clips", "lines"),
    [(7000, {}), (1000, {"columns": 3}), (1000, {"rows": 2}), (1000, {"columns": 2, "rows": 1})],
    ids=["unstructured", "time", "freq", "tf"],
)
def test_ten_thousand_random_keys_give_the_references_plans_bit_for_bit(clips, lines, poisoned_memory):
    for part in range(0, clips, 250):  # forty seeds in all
        assert_same_plans(random_keys(250, seed=part), SMALL, 4, stream=Stream.AUDIO_MASK, **lines)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["unstructured", "time", "freq", "tf"])
def test_masks_of_the_real_grid_are_the_references(mode, poisoned_memory):
    columns, rows = structured_counts(mode, 0.75, BASE)
    for seed in range(2):
        options = {"stream": Stream.AUDIO_MASK, "columns": columns, "rows": rows}
        assert_same_plans(random_keys(25, seed), BASE, 128, **options)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), size=st.tuples(st.integers(1, 9), st.integers(1, 40)))
def test_any_grid_any_count_and_any_choice_of_lines(data, size):
    rows, columns = size
    kept = data.draw(st.integers(0, rows * columns))
    lines = {"columns": data.draw(st.integers(0, columns)), "rows": data.draw(st.integers(0, rows))}
    keys = random_keys(2, seed=data.draw(st.integers(0, 99)))
    assert_same_plans(keys, Grid(rows, columns, 16, 1), kept, stream=Stream.IMAGE_MASK, **lines)


def test_a_grid_larger_than_one_program_is_ranked_as_a_whole():
    assert_same_plans(random_keys(1, seed=0), Grid(20, 30, 16, 1), 150, stream=Stream.AUDIO_MASK, columns=9)


def test_one_epoch_for_all_clips_is_the_same_as_saying_it_for_each():
    clips = torch.tensor([5, 2**39 - 1, 0])
    one = random_mask(2**32 - 1, 2**31 - 1, clips, SMALL, 4, stream=Stream.AUDIO_MASK)
    each = random_mask(2**32 - 1, torch.full((3,), 2**31 - 1), clips, SMALL, 4, stream=Stream.AUDIO_MASK)
    assert all(torch.equal(x, y) for x, y in zip(one, each, strict=True))
    assert_same_plans((2**32 - 1, 2**31 - 1, clips), SMALL, 4, stream=Stream.AUDIO_MASK)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "columns", "rows", "union"),
    [(0.5, 22, 2, 260), (0.65, 29, 3, 337), (0.75, 33, 4, 388), (0.85, 38, 4, 408)],
)
def test_tf_masks_hide_as_many_patches_as_officially(ratio, columns, rows, union):
    # given the plan of a clip
    plan = draw_plans(ModelConfig(), MaskConfig(audio_ratio=ratio, audio_mode="tf"), 3, 1, torch.arange(2)).audio
    hidden = plan.mask.reshape(2, 8, 64)
    # then the number hidden is the ratio's, and the chosen lines are hidden first
    removed = 512 - kept_patches(512, ratio)
    assert hidden.sum((1, 2)).eq(removed).all()
    if union <= removed:
        assert hidden.amin(1).sum(1).ge(columns).all() and hidden.amin(2).sum(1).ge(rows).all()
    else:
        assert (1 - hidden).sum(1).ge(8 - rows).sum(1).ge(64 - columns).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (0, 5)}, "grid must have 1 to 65536 patches, got 0 x 5"),
        ({"grid": (512, 256)}, "grid must have 1 to 65536 patches"),
        ({"kept": 16}, "kept must lie in 0 ... 15"),
        ({"columns": 6}, r"columns and rows to hide must lie in 0 ... 5 and 0 ... 3, got 6, 0"),
        ({"rows": -1}, "columns and rows to hide"),
        ({"clip_index": torch.arange(2, dtype=torch.int32)}, r"clip_index must be contiguous int64 \[B\], got int32"),
        ({"clip_index": torch.arange(4)[::2]}, "clip_index must be contiguous.* not contiguous"),
        ({"epoch": torch.arange(3)}, r"epoch must be contiguous int64 \[2\], got int64 \[3\]"),
        ({"seed": 2**32}, "seed must lie in"),
        ({"epoch": -1}, "epoch must lie in"),
        ({"clip_index": torch.tensor([0, 2**39])}, "clip_index must lie in"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(change, message):
    arguments = {"seed": 0, "epoch": 0, "clip_index": torch.arange(2), "grid": SMALL, "kept": 4, **change}
    with pytest.raises(ValueError, match=message):
        random_mask(stream=Stream.AUDIO_MASK, **arguments)


def test_no_clips_give_empty_plans():
    keep, hidden, restore = random_mask(0, 0, torch.arange(0), SMALL, 4, stream=Stream.AUDIO_MASK)
    assert (keep.shape, hidden.shape, restore.shape) == ((0, 4), (0, 11), (0, 15))

"""Masks: every patch in its place, the official counts, structure first, the clip's own randomness."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.errors import ConfigError
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, draw_plans
from cavmae_ds.models.common.masking import kept_patches, plan_from_noise, structured, structured_counts
from cavmae_ds.models.common.patches import Grid

BASE = ModelConfig()
SIZES = st.tuples(st.integers(1, 5), st.integers(2, 80)).flatmap(
    lambda size: st.tuples(st.just(size[0]), st.just(size[1]), st.integers(1, size[1] - 1))
)


@settings(max_examples=100, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**32))
def test_masking_then_restoring_returns_every_patch_to_its_place(size, seed):
    clips, patches, kept = size
    noise = torch.rand(clips, patches, generator=torch.Generator().manual_seed(seed))
    plan = plan_from_noise(noise, kept)
    shuffled = torch.cat([plan.keep, plan.hidden], dim=1)
    assert plan.keep.shape == (clips, kept)
    assert torch.equal(shuffled.gather(1, plan.restore), torch.arange(patches).expand(clips, -1))
    assert torch.equal(plan.mask.sum(1), torch.full((clips,), float(patches - kept)))
    assert plan.mask.gather(1, plan.hidden).eq(1).all() and plan.mask.gather(1, plan.keep).eq(0).all()


def test_the_smallest_draws_are_kept_in_their_order_and_ties_go_by_patch():
    plan = plan_from_noise(torch.tensor([[0.5, 0.1, 0.9, 0.1, 0.3]]), kept=3)
    assert plan.keep.tolist() == [[1, 3, 4]]
    assert plan.hidden.tolist() == [[0, 2]]
    assert plan.mask.tolist() == [[1, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("ratio", "audio", "image"),
    [(0.5, 256, 98), (0.65, 179, 68), (0.75, 128, 49), (0.85, 76, 29), (0.9, 51, 19)],
)
def test_as_many_patches_are_kept_as_officially(ratio, audio, image):
    assert (kept_patches(512, ratio), kept_patches(196, ratio)) == (audio, image)


@pytest.mark.parametrize(
    ("ratio", "time", "freq", "tf", "tf_union"),
    [
        (0.5, 32, 4, (22, 2), 260),
        (0.65, 41, 5, (29, 3), 337),
        (0.75, 48, 6, (33, 4), 388),
        (0.85, 54, 6, (38, 4), 408),
    ],
)
def test_structured_masks_choose_the_official_columns_and_rows(ratio, time, freq, tf, tf_union):
    grid = audio_grid(BASE)
    assert structured_counts("time", ratio, grid) == (time, 0)
    assert structured_counts("freq", ratio, grid) == (0, freq)
    assert structured_counts("tf", ratio, grid) == tf
    columns, rows = tf
    lifted = structured(torch.zeros(1, 512), torch.arange(columns)[None], torch.arange(rows)[None], grid)
    assert lifted.sum() == tf_union


@pytest.mark.parametrize("mode", ["time", "freq", "tf"])
@pytest.mark.parametrize("ratio", [0.5, 0.65, 0.75, 0.85])
def test_structure_comes_first_and_chance_fills_the_rest(mode, ratio):
    # given the plans of many clips
    mask = MaskConfig(audio_ratio=ratio, audio_mode=mode)
    hidden = draw_plans(BASE, mask, 0, 0, torch.arange(50)).audio.mask.reshape(50, 8, 64)
    # when counting whole columns and rows that are hidden
    columns, rows = structured_counts(mode, ratio, audio_grid(BASE))
    union = 512 - (64 - columns) * (8 - rows)
    # then all chosen ones are, unless more were chosen than may be hidden; the number hidden stays
    assert hidden.sum((1, 2)).eq(512 - kept_patches(512, ratio)).all()
    if union <= 512 - kept_patches(512, ratio):
        assert hidden.amin(1).sum(1).ge(columns).all() and hidden.amin(2).sum(1).ge(rows).all()
    else:  # nothing outside the chosen is hidden: 8 - rows rows show all of 64 - columns columns
        open_columns = (1 - hidden).sum(1).ge(8 - rows).sum(1)
        assert open_columns.ge(64 - columns).all()


@pytest.mark.parametrize("mode", ["unstructured", "time", "freq", "tf"])
def test_a_clips_mask_is_the_same_in_any_batch_and_epoch_tensor(mode):
    mask = MaskConfig(audio_mode=mode)
    epoch, clips = torch.tensor([3, 3, 4]), torch.tensor([17, 2**38, 17])
    together = draw_plans(BASE, mask, 9, epoch, clips)
    for i in range(3):
        alone = draw_plans(BASE, mask, 9, int(epoch[i]), clips[i : i + 1])
        for whole, single in zip((*together.audio, *together.image), (*alone.audio, *alone.image), strict=True):
            assert torch.equal(whole[i : i + 1], single)
    assert not torch.equal(together.audio.keep[0], together.audio.keep[2]), "another epoch, another mask"


@pytest.mark.parametrize("mode", ["unstructured", "time", "freq", "tf"])
def test_every_patch_is_hidden_equally_often(mode):
    plans = draw_plans(BASE, MaskConfig(audio_mode=mode), 1, 0, torch.arange(2000))
    deviation = (0.25 * 0.75 / 2000) ** 0.5
    for plan in plans:
        share = plan.mask.mean(0)
        assert (share - plan.mask.mean()).abs().max() < 5 * deviation


def test_sound_and_image_of_a_clip_are_masked_independently():
    square = ModelConfig(audio_frames=128, mel_bins=128, image_size=128)
    plans = draw_plans(square, MaskConfig(), 0, 0, torch.arange(4))
    assert not torch.equal(plans.audio.keep, plans.image.keep)


@settings(max_examples=20, deadline=None)
@given(columns=st.integers(2, 70), mode=st.sampled_from(["unstructured", "time", "freq", "tf"]))
def test_any_audio_length_of_whole_patches_can_be_masked(columns, mode):
    model = ModelConfig(audio_frames=16 * columns)
    plan = draw_plans(model, MaskConfig(audio_mode=mode), 0, 0, torch.arange(3)).audio
    assert plan.keep.shape == (3, kept_patches(8 * columns, 0.75))
    assert torch.equal(plan.restore.sort(1).values, torch.arange(8 * columns).expand(3, -1))


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, 0.999])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(ConfigError, match=f"mask ratio.*{ratio}"):
        kept_patches(196, ratio)


def test_an_unknown_mode_is_refused_and_the_known_ones_named():
    with pytest.raises(ConfigError, match="unstructured, time, freq, tf, got 'diagonal'"):
        structured_counts("diagonal", 0.75, Grid(8, 64, 16, 1))

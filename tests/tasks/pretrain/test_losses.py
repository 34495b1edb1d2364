"""The losses against their formulas, the official values, and one another across ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels.contrastive import unit_rows
from cavmae_ds.models.common.masking import Plans, plan_from_noise
from cavmae_ds.models.common.output import PretrainOutput, Target
from cavmae_ds.models.common.patches import Grid, Picture
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
from cavmae_ds.tasks.pretrain.losses import contrast_within, contrastive_loss, pretrain_losses
from tests.models.cavmae.official import normals


def make_output(clips: int = 3, dtype: torch.dtype = torch.float32) -> PretrainOutput:
    """What a model might hand over, with gradients."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(clips, *shape, generator=random, dtype=dtype)

    sound, sight = Grid(2, 4, 2, 1), Grid(2, 3, 2, 3)
    plans = Plans(plan_from_noise(draw(8), 2), plan_from_noise(draw(6), 3))
    pooled = [draw(12).requires_grad_() for _ in range(2)]
    predictions = [draw(6, 4).requires_grad_(), draw(3, 12).requires_grad_()]
    audio = Picture(draw(8, 4), sound, (0.0,), (1.0,))
    image = Picture(draw(3, 4, 6), sight, (0.0,) * 3, (1.0,) * 3)
    return PretrainOutput(
        *pooled,
        (Target("audio", audio, plans.audio, predictions[0]), Target("image", image, plans.image, predictions[1])),
    )


def test_the_contrastive_loss_looks_from_image_to_sound_as_officially():
    audio = normals(3, 6, 768)
    image = normals(4, 6, 768) + 0.2 * audio
    a, v = unit_rows(audio), unit_rows(image)
    one_way, *_ = contrastive_loss(a, v, a, None, 0, temperature=0.05, direction="v2a")
    other_way, *_ = contrastive_loss(v, a, v, None, 0, temperature=0.05, direction="v2a")
    both, *_ = contrastive_loss(a, v, a, v, 0, temperature=0.05, direction="both")
    got = [one_way.item(), both.item(), other_way.item()]
    assert got == pytest.approx([0.159738, 0.163564, 0.167390], abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(ranks=st.integers(1, 4), each=st.integers(1, 4), direction=st.sampled_from(["v2a", "both"]))
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(ranks, each, direction):
    audio = unit_rows(torch.randn(ranks * each, 16, dtype=torch.float64))
    image = unit_rows(torch.randn(ranks * each, 16, dtype=torch.float64))
    whole = contrastive_loss(audio, image, audio, image, 0, 0.05, direction)
    parts = [
        contrastive_loss(audio[r : r + each], image[r : r + each], audio, image, r, 0.05, direction)
        for r in range(0, ranks * each, each)
    ]
    mean = torch.tensor(parts, dtype=torch.float64).mean(0)
    torch.testing.assert_close(mean, torch.stack(whole))


def test_accuracy_is_that_of_the_directions_in_the_loss():
    """The second image is nearest to the first audio; every audio is nearest to its own image."""
    audio = torch.eye(4)
    image = unit_rows(torch.eye(4) + 1.2 * torch.eye(4)[[3, 0, 1, 2]] * torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None])
    one = contrastive_loss(audio, image, audio, image, 0, 0.05, "v2a")
    both = contrastive_loss(audio, image, audio, image, 0, 0.05, "both")
    assert one[1:] == (0.75, 0.75, 0)
    assert both[1:] == (0.875, 0.75, 1)


def test_unit_rows_have_length_one_in_float32_whatever_the_scale():
    rows = unit_rows(torch.randn(5, 768).bfloat16() * torch.logspace(-3, 3, 5)[:, None].bfloat16())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("direction", ["v2a", "both"])
def test_gradients_are_the_finite_differences(direction):
    output = make_output(dtype=torch.float64)

    def total(audio: torch.Tensor, image: torch.Tensor, *predictions: torch.Tensor) -> torch.Tensor:
        moved = output._replace(audio_pooled=audio, image_pooled=image).predicting(*predictions)
        weights = LossConfig(contrastive_weight=0.5)
        contrastive = ContrastiveConfig(direction=direction, temperature=0.5)
        return pretrain_losses(moved, contrast_within(moved, contrastive), weights).total

    assert torch.autograd.gradcheck(total, (*output[:2], *(target.prediction for target in output.targets)))


def test_the_total_is_the_weighted_sum_and_the_parts_are_unweighted():
    output = make_output()
    weights = LossConfig(mae_weight=3.0, contrastive_weight=0.25)
    losses = pretrain_losses(output, contrast_within(output, ContrastiveConfig()), weights)
    plain = pretrain_losses(output, contrast_within(output, ContrastiveConfig()), LossConfig())
    expected = 3 * (losses.mae["audio"] + losses.mae["image"]) + 0.25 * losses.contrastive
    torch.testing.assert_close(losses.total, expected)
    assert losses[1:] == plain[1:]


def test_a_loss_of_weight_zero_needs_no_output_and_counts_nothing():
    output = make_output()
    without_decoder = output.predicting(None, None)
    contrastive_only = LossConfig(mae_weight=0.0, contrastive_weight=1.0)
    losses = pretrain_losses(without_decoder, contrast_within(output, ContrastiveConfig()), contrastive_only)
    assert losses.total == losses.contrastive > 0 == losses.mae["audio"] == losses.mae["image"]
    without_pooled = output._replace(audio_pooled=None, image_pooled=None)
    losses = pretrain_losses(without_pooled, None, LossConfig(contrastive_weight=0.0))
    assert losses.total == losses.mae["audio"] + losses.mae["image"] > 0 == losses.contrastive


def test_an_unknown_direction_is_refused():
    rows = torch.eye(2)
    with pytest.raises(ValueError, match="'v2a' or 'both', got 'a2v'"):
        contrastive_loss(rows, rows, rows, rows, 0, 0.05, "a2v")

"""Clips completed by a model: what stays as it was, what the model may look at, losses, and refusals."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.evaluation.composite import Stages, stages
from cavmae_ds.evaluation.inference import Judged, open_judged
from cavmae_ds.evaluation.inpainting import Settings, clip_losses, inpaint, plans_for, spread_clips
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.models.common.patches import audio_to_patches, patchify
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.tasks.pretrain.config import LossConfig
from cavmae_ds.tasks.pretrain.losses import reconstruction_loss
from cavmae_ds.weights.single_file import save_single_file
from tests.weights.small_models import SIZES, small_model

HIDINGS = {
    "official": Settings(),
    "tf": Settings(audio_mode="tf", image_ratio=0.5),
    "all sound": Settings(audio_ratio=1.0, image_ratio=0.0),
    "all sight": Settings(audio_ratio=0.0, image_ratio=1.0),
    "all sound, half the sight": Settings(audio_ratio=1.0, image_ratio=0.5),
    "normalised": Settings(normalised_pixels=True),
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_shards) -> Judged:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_single_file(Weights("pretrain", SIZES, 0, dict(small_model("pretrain").state_dict()), "made"), path)
    return open_judged(path, str(tiny_shards))


def both_stages(output: PretrainOutput, settings: Settings) -> tuple[Stages, Stages]:
    normalised, plans = settings.normalised_pixels, output.plans
    return (
        stages(output.audio, output.audio_prediction, plans.audio, normalised, 3),
        stages(output.image, output.image_prediction, plans.image, normalised, 3),
    )


@pytest.mark.parametrize("hiding", HIDINGS)
def test_acceptance_16_visible_patches_stay_bit_for_bit_and_hidden_ones_are_the_predictions(judged, hiding):
    settings = HIDINGS[hiding]
    batch = spread_clips(judged, 3)
    output = inpaint(judged, batch, settings)

    log_mel, frames = judged.front_end(batch)  # what the model is given, normalised below as the spec says
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    inputs = (
        audio_to_patches((log_mel + 5.081) / 4.4849, output.audio.grid),
        patchify((frames[:, 0] / 255 - mean) / std, output.image.grid),
    )
    audio, image = both_stages(output, settings)
    for given, prediction, plan, mine in (
        (inputs[0], output.audio_prediction, output.plans.audio, audio),
        (inputs[1], output.image_prediction, output.plans.image, image),
    ):
        torch.testing.assert_close(mine.given, given, rtol=0, atol=1e-5)
        visible = plan.mask == 0
        assert torch.equal(mine.rebuilt[visible], mine.given[visible])
        assert mine.seen.isnan().all(2).equal(~visible) and torch.equal(mine.seen[visible], mine.given[visible])
        for clip, hidden in enumerate(plan.hidden):
            target, predicted = given[clip, hidden], prediction[clip]
            if settings.normalised_pixels:
                predicted = predicted * (target.var(1, keepdim=True) + 1e-6).sqrt() + target.mean(1, keepdim=True)
            torch.testing.assert_close(mine.rebuilt[clip, hidden], predicted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("hiding", "of"), [("all sound", "audio"), ("all sight", "image")])
def test_what_is_hidden_as_a_whole_is_made_of_the_other_alone_and_is_finite(judged, hiding, of):
    batch = spread_clips(judged, 3)
    changed = {"audio": batch._replace(audio=batch.audio.flip(1)), "image": batch._replace(frames=255 - batch.frames)}
    other = "image" if of == "audio" else "audio"

    made, unmoved, moved = (
        getattr(inpaint(judged, clips, HIDINGS[hiding]), f"{of}_prediction")
        for clips in (batch, changed[of], changed[other])
    )

    grid = getattr(judged.loaded.model, f"{of}_grid")
    assert made.shape == (3, grid.patches, grid.values) and made.isfinite().all()
    assert torch.equal(made, unmoved)
    assert not torch.allclose(made, moved)


@pytest.mark.parametrize("hiding", HIDINGS)
def test_losses_of_clips_average_to_the_training_loss_and_are_missing_where_nothing_is_hidden(judged, hiding):
    settings = HIDINGS[hiding]
    output = inpaint(judged, spread_clips(judged, 3), settings)

    losses = clip_losses(judged, output, settings.normalised_pixels)

    if settings.image_ratio == 0:
        assert all(loss.image is None for loss in losses)
    if settings.audio_ratio == 0:
        assert all(loss.audio is None for loss in losses)
    if 0 not in (settings.audio_ratio, settings.image_ratio):
        of_training = reconstruction_loss(output, LossConfig(normalise_pixels=settings.normalised_pixels))
        assert sum(loss.audio for loss in losses) / 3 == pytest.approx(float(of_training.audio), rel=1e-5)
        assert sum(loss.image for loss in losses) / 3 == pytest.approx(float(of_training.image), rel=1e-5)
    if not settings.normalised_pixels:  # the loss is the distance between what is drawn and what was given
        audio, _ = both_stages(output, settings)
        apart = (audio.rebuilt - audio.given).square().mean(2).sum(1) / output.plans.audio.mask.sum(1).clamp(min=1)
        assert [loss.audio or 0.0 for loss in losses] == pytest.approx(apart.tolist(), rel=1e-4)


def test_a_mask_belongs_to_the_seed_and_the_clip_not_to_its_neighbours(judged):
    settings = Settings(audio_ratio=0.5, image_ratio=0.5)
    three, alone = torch.tensor([20, 4, 9]), torch.tensor([4])
    plans = [plans_for(settings, SIZES, clips) for clips in (three, alone)]
    assert torch.equal(plans[0].audio.keep[1:2], plans[1].audio.keep)
    assert torch.equal(plans[0].image.keep[1:2], plans[1].image.keep)
    assert not torch.equal(plans_for(settings._replace(seed=1), SIZES, alone).audio.keep, plans[1].audio.keep)


@pytest.mark.parametrize("mode", ["time", "freq"])
def test_a_structured_mode_hides_whole_columns_or_rows_of_the_sound(mode):
    plans = plans_for(Settings(audio_ratio=0.5, audio_mode=mode), SIZES, torch.arange(4))
    hidden = plans.audio.mask.view(4, 8, 6)  # 128 mel bins and 96 frames, in patches of 16
    lines = hidden.mean(1 if mode == "time" else 2)  # share of each column, or row, that is hidden
    assert set(lines.unique().tolist()) == {0.0, 1.0} and lines.mean().item() == 0.5
    assert len({tuple(clip.tolist()) for clip in lines}) > 1


def test_more_clips_than_there_are_is_every_clip_once(judged):
    batch = spread_clips(judged, 32)
    assert batch.clip_index.tolist() == list(range(24))
    assert spread_clips(judged, 3).clip_index.tolist() == [0, 8, 16]


def test_a_ratio_that_comes_to_everything_or_nothing_is_refused_with_how_many_patches_it_keeps(judged):
    with pytest.raises(ConfigError, match=r"got 0\.99, which keeps 0"):
        plans_for(Settings(audio_ratio=0.99), SIZES, torch.arange(1))


def test_predictions_that_are_no_numbers_are_a_sentence(judged):
    output = inpaint(judged, spread_clips(judged, 2), Settings())
    with pytest.raises(CheckpointError, match="are no numbers"):
        clip_losses(judged, output._replace(image_prediction=output.image_prediction * torch.nan), False)

"""Pictures of reconstructions: which panel shows what, names of clips, axes, colours and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cavmae_ds.data.format.clips import Batch, collate
from cavmae_ds.data.inspect.log_mel_image import scale_of
from cavmae_ds.data.loading.stream import EvaluationClips
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.data.transforms.log_mel import LogMel, frames_of
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.evaluation.inpainting import Settings, plans_for
from cavmae_ds.evaluation.reconstruction_figure import draw_reconstructions, figure_pixels, sound_frames
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.output import PretrainOutput
from tests.weights.small_models import SIZES

LONGER = SIZES.model_copy(update={"audio_frames": 160})
"""Of a model that hears 1.6 s; the clips last 1.2 s."""


@pytest.fixture(scope="module")
def batch(tiny_shards) -> Batch:
    return collate([EvaluationClips(str(tiny_shards), inputs(LONGER))[place] for place in (0, 9)])


@pytest.fixture(scope="module")
def output(batch) -> PretrainOutput:
    """Of a model to which half of both was shown."""
    torch.manual_seed(0)
    model, front_end = CAVMAE(LONGER, training_normalisation()).eval(), FrontEnd(inputs(LONGER), torch.device("cpu"))
    plans = plans_for(Settings(audio_ratio=0.5, image_ratio=0.5), LONGER, batch.clip_index)
    with torch.inference_mode():
        return model(*front_end(batch), plans, contrastive=False)


@pytest.fixture(scope="module")
def figure(output, batch) -> Figure:
    return draw_reconstructions(output, False, 2, batch.clip_ids)


def shown(panel: Axes) -> np.ndarray:
    """Pixels [H, W, 3] of a frame, log-mel [mel bins, T] from the lowest bin up with NaN for what is hidden."""
    [image] = panel.images
    values = image.get_array()
    return values.filled() if values.dtype == np.uint8 else values.filled(np.nan)


def hidden_pixels(mask: torch.Tensor, rows: int) -> np.ndarray:
    """Where patches of 16 x 16 are hidden: mask [patches] row by row to bool [H, W]."""
    return mask.view(rows, -1).repeat_interleave(16, 0).repeat_interleave(16, 1).bool().numpy()


def test_the_columns_are_the_frame_and_the_log_mel_each_as_given_as_seen_and_as_rebuilt(figure):
    first, second = (row.axes[:6] for row in figure.subfigs)
    titles = ["frame", "what is seen", "rebuilt", "log-mel", "what is heard", "rebuilt"]
    assert [panel.get_title() for panel in first] == titles
    assert not any(panel.get_title() for panel in second)


@pytest.mark.parametrize("clip", [0, 1])
def test_the_first_three_panels_show_the_frame_its_visible_patches_and_the_completed_one(clip, figure, output, batch):
    given, seen, rebuilt = (shown(panel) for panel in figure.subfigs[clip].axes[:3])
    hidden = hidden_pixels(output.plans.image.mask[clip], 4)
    assert (given == batch.frames[clip, 0].permute(1, 2, 0).numpy()).all()
    assert (seen[~hidden] == given[~hidden]).all() and (seen[hidden] == (124, 116, 104)).all()  # ImageNet's mean
    assert (rebuilt[~hidden] == given[~hidden]).all() and (rebuilt[hidden] != seen[hidden]).mean() > 0.9


@pytest.mark.parametrize("clip", [0, 1])
def test_the_next_three_show_the_log_mel_what_the_model_hears_of_it_and_the_completed_one(clip, figure, output, batch):
    given, heard, rebuilt = (shown(panel) for panel in figure.subfigs[clip].axes[3:6])
    hidden = hidden_pixels(output.plans.audio.mask[clip], 8)
    np.testing.assert_allclose(given, LogMel()(batch.audio, batch.n_samples, 160)[clip].T, atol=1e-4)
    assert (heard[~hidden] == given[~hidden]).all() and np.isnan(heard[hidden]).all()
    assert (rebuilt[~hidden] == given[~hidden]).all() and (rebuilt[hidden] != given[hidden]).mean() > 0.9


def test_a_picture_names_its_clips_shows_khz_a_colour_bar_and_padding_in_grey(figure, output, batch):
    """Padding is louder than silence in a log-mel."""
    lengths = frames_of(batch.n_samples)
    assert sound_frames(output.audio.pixels).tolist() == lengths.tolist() and max(lengths) < 130
    assert [row.get_suptitle() for row in figure.subfigs] == list(batch.clip_ids)
    log_mels = LogMel()(batch.audio, batch.n_samples, 160)
    for row, log_mel, length in zip(figure.subfigs, log_mels, lengths.tolist(), strict=True):
        *_, given, heard, rebuilt, bar = row.axes
        assert given.get_ylabel() == "kHz" and bar.get_ylabel() == "log energy"
        loudest = log_mel[:length].max().item()
        assert bar.get_ylim()[1] == pytest.approx(loudest, abs=1e-3) and loudest != 0.0  # padding does not count
        for panel in (given, heard, rebuilt):
            [padding] = panel.patches
            assert to_hex(padding.get_facecolor()) == "#e4e4e4"
            assert (padding.get_x(), padding.get_x() + padding.get_width()) == pytest.approx((length / 100, 1.6))
    pixels = figure_pixels(figure)
    assert pixels.shape[2] == 3 and pixels.std() > 20


def test_a_clip_without_a_single_window_is_padding_from_its_start():
    assert sound_frames(torch.zeros(1, 160, 128)).tolist() == [0]
    assert scale_of(np.zeros((0, 128), np.float32)) == (0.0, 1.0)

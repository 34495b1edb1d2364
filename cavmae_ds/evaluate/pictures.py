"""Pictures of reconstructions: for each clip its frame and its log-mel as given, as seen by the encoder, as rebuilt."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cavmae_ds.data.normalise import denormalise_images
from cavmae_ds.evaluate.composite import stages
from cavmae_ds.model.cavmae import PretrainOutput
from cavmae_ds.model.patches import unpatchify

COLUMNS = ("frame", "what is seen", "rebuilt", "log-mel", "what is heard", "rebuilt")


def drawable(output: PretrainOutput | None) -> TypeGuard[PretrainOutput]:
    """True if there is something to draw: a model that reconstructs, and a run that asks for it."""
    return output is not None and output.image_prediction is not None


def draw_reconstructions(output: PretrainOutput, normalised: bool, clips: int) -> Figure:
    """One row a clip, the first `clips` of a micro-batch. Needs predictions: a run with loss.mae_weight > 0.

    normalised: the model was trained with loss.normalise_pixels, see stages.
    """
    if output.image_prediction is None or output.audio_prediction is None:
        raise ValueError("nothing was reconstructed: loss.mae_weight is 0")
    plans = output.plans
    clips = min(clips, len(output.image_prediction))  # those of the first chunk, where the decoder runs in chunks
    frames = [
        _to_pixels(unpatchify(patches, output.image.grid))
        for patches in stages(output.image, output.image_prediction, plans.image, normalised, clips)
    ]  # 3 x [n, H, W, 3]
    mels = [
        unpatchify(patches, output.audio.grid)[:, 0].numpy()
        for patches in stages(output.audio, output.audio_prediction, plans.audio, normalised, clips)
    ]  # 3 x [n, mel, T]
    return _draw(frames, mels, plans.image.mask, plans.audio.mask, normalised)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A drawn figure as [H, W, 3] uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _to_pixels(images: Tensor) -> np.ndarray:
    """Normalised [n, 3, H, W] to uint8 [n, H, W, 3]; hidden pixels in the data set's mean colour, a grey."""
    return denormalise_images(images.nan_to_num(0.0)).permute(0, 2, 3, 1).numpy()


def _draw(
    frames: list[np.ndarray], mels: list[np.ndarray], image_mask: Tensor, audio_mask: Tensor, normalised: bool
) -> Figure:
    rows = len(frames[0])
    figure = Figure(figsize=(13, 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 6, squeeze=False, width_ratios=(1, 1, 1, 1.6, 1.6, 1.6))
    mel_bins, seconds = mels[0].shape[1], mels[0].shape[2] / 100
    for row in range(rows):
        low, high = mels[0][row].min(), mels[0][row].max()  # one colour scale for the three log-mels of a clip
        for column in range(3):
            axes[row, column].imshow(frames[column][row])
            axes[row, column].set_axis_off()
            panel = axes[row, 3 + column]
            panel.set_facecolor("0.5")  # hidden patches are NaN: the grey shows through
            panel.imshow(
                mels[column][row], origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high,
                extent=(0, seconds, 0, mel_bins), interpolation="nearest",
            )  # fmt: skip
            panel.set_yticks([])
            if row < rows - 1:
                panel.set_xticks([])
    for column, title in enumerate(COLUMNS):
        axes[0, column].set_title(title, fontsize=10)
    axes[-1, 4].set_xlabel("seconds", fontsize=9)
    note = "; patch mean and variance from the input" if normalised else ""
    figure.suptitle(
        f"{image_mask[0].mean():.0%} of the frame and {audio_mask[0].mean():.0%} of the sound hidden{note}",
        fontsize=10,
    )
    return figure

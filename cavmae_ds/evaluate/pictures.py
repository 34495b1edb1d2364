"""Pictures of reconstructions: for each clip its frame and its log-mel as given, as seen by the encoder, as rebuilt."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cavmae_ds.config import RunConfig
from cavmae_ds.data.normalise import denormalise_images
from cavmae_ds.model.cavmae import PretrainOutput
from cavmae_ds.model.masking import MaskPlan
from cavmae_ds.model.patches import Picture, unpatchify

COLUMNS = ("frame", "what is seen", "rebuilt", "log-mel", "what is heard", "rebuilt")


def drawable(output: PretrainOutput | None) -> TypeGuard[PretrainOutput]:
    """True if there is something to draw: a model that reconstructs, and a run that asks for it."""
    return output is not None and output.image_prediction is not None


def draw_reconstructions(output: PretrainOutput, cfg: RunConfig, clips: int) -> Figure:
    """One row a clip, the first `clips` of a micro-batch. Needs predictions: a run with loss.mae_weight > 0.

    With loss.normalise_pixels the model predicts each patch up to its mean and variance; those two numbers are then
    taken from the input, as pictures of masked autoencoders usually do. Visible patches are shown as given.
    """
    if output.image_prediction is None or output.audio_prediction is None:
        raise ValueError("nothing was reconstructed: loss.mae_weight is 0")
    plans, normalised = output.plans, cfg.loss.normalise_pixels
    clips = min(clips, len(output.image_prediction))  # those of the first chunk, where the decoder runs in chunks
    frames = [
        _to_pixels(unpatchify(patches, output.image.grid))
        for patches in _stages(output.image, output.image_prediction, plans.image, normalised, clips)
    ]  # 3 x [n, H, W, 3]
    mels = [
        unpatchify(patches, output.audio.grid)[:, 0].numpy()
        for patches in _stages(output.audio, output.audio_prediction, plans.audio, normalised, clips)
    ]  # 3 x [n, mel, T]
    return _draw(frames, mels, plans.image.mask, plans.audio.mask, cfg)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A drawn figure as [H, W, 3] uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _stages(
    picture: Picture, prediction: Tensor, plan: MaskPlan, normalised: bool, clips: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches [n, L, P] as given, with hidden ones missing (NaN), and with hidden ones predicted; on the CPU."""
    first = Picture(picture.pixels[:clips].cpu(), *picture[1:])
    patches = first.patches(first.every_patch(), torch.float32)
    hidden = plan.hidden[:clips].cpu()[..., None].expand(-1, -1, patches.shape[2])  # [n, H, P]
    rebuilt = prediction[:clips].detach().float().cpu()  # [n, H, P]
    if normalised:
        target = patches.gather(1, hidden)
        rebuilt = rebuilt * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    return patches, patches.scatter(1, hidden, torch.nan), patches.scatter(1, hidden, rebuilt)


def _to_pixels(images: Tensor) -> np.ndarray:
    """Normalised [n, 3, H, W] to uint8 [n, H, W, 3]; hidden pixels in the data set's mean colour, a grey."""
    return denormalise_images(images.nan_to_num(0.0)).permute(0, 2, 3, 1).numpy()


def _draw(
    frames: list[np.ndarray], mels: list[np.ndarray], image_mask: Tensor, audio_mask: Tensor, cfg: RunConfig
) -> Figure:
    rows = len(frames[0])
    figure = Figure(figsize=(13, 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 6, squeeze=False, width_ratios=(1, 1, 1, 1.6, 1.6, 1.6))
    seconds = cfg.model.audio_frames / 100
    for row in range(rows):
        low, high = (
            mels[0][row].min(),
            mels[0][row].max(),
        )  # one colour scale for the three log-mels of a clip
        for column in range(3):
            axes[row, column].imshow(frames[column][row])
            axes[row, column].set_axis_off()
            panel = axes[row, 3 + column]
            panel.set_facecolor("0.5")  # hidden patches are NaN: the grey shows through
            panel.imshow(
                mels[column][row], origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high,
                extent=(0, seconds, 0, cfg.model.mel_bins), interpolation="nearest",
            )  # fmt: skip
            panel.set_yticks([])
            if row < rows - 1:
                panel.set_xticks([])
    for column, title in enumerate(COLUMNS):
        axes[0, column].set_title(title, fontsize=10)
    axes[-1, 4].set_xlabel("seconds", fontsize=9)
    note = "; patch mean and variance from the input" if cfg.loss.normalise_pixels else ""
    figure.suptitle(
        f"{image_mask[0].mean():.0%} of the frame and {audio_mask[0].mean():.0%} of the sound hidden{note}",
        fontsize=10,
    )
    return figure

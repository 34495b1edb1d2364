"""Pictures of reconstructions: for each clip its frame and its log-mel as given, as seen by the encoder, as rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from cavmae_ds.data.inspect.log_mel_image import draw_colour_bar, draw_log_mel, scale_of
from cavmae_ds.data.transforms.normalise import denormalise_images
from cavmae_ds.errors import printable
from cavmae_ds.evaluation.composite import stages
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.models.common.patches import patches_to_audio, unpatchify

FRAMES_PER_SECOND = 100
COLUMNS = ("frame", "what is seen", "rebuilt", "log-mel", "what is heard", "rebuilt")


def drawable(output: PretrainOutput | None) -> TypeGuard[PretrainOutput]:
    """True if there is something to draw: a model that reconstructs, and a run that asks for it."""
    return output is not None and output.image_prediction is not None


def draw_reconstructions(output: PretrainOutput, normalised: bool, clips: int, names: Sequence[str] = ()) -> Figure:
    """One row a clip, the first `clips` of a micro-batch. Needs predictions: a run with loss.mae_weight > 0.

    normalised: the model was trained with loss.normalise_pixels, see stages. names: of the clips of the micro-batch.
    """
    if output.image_prediction is None or output.audio_prediction is None:
        raise ValueError("nothing was reconstructed: loss.mae_weight is 0")
    plans = output.plans
    clips = min(clips, len(output.image_prediction))  # those of the first chunk, where the decoder runs in chunks
    frames = [
        _to_pixels(unpatchify(patches, output.image.grid))
        for patches in stages(output.image, output.image_prediction, plans.image, normalised, clips)
    ]  # 3 x [n, H, W, 3]
    (mean,), (std,) = output.audio.mean, output.audio.std
    mels = [
        (patches_to_audio(patches, output.audio.grid) * std + mean).numpy()
        for patches in stages(output.audio, output.audio_prediction, plans.audio, normalised, clips)
    ]  # 3 x [n, T, mel], raw
    lengths = sound_frames(output.audio.pixels[:clips]).tolist()
    figure = Figure(figsize=(14, 2.1 * clips + 0.7), layout="constrained", facecolor="white")
    heights = [1.1, *[1.0] * (clips - 1)]  # the first row has titles
    rows = figure.subfigures(clips, 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, strip in enumerate(rows):
        name = names[row] if names else ""
        _draw_clip(strip, name, [part[row] for part in frames], [part[row] for part in mels], lengths[row], row == 0)
    note = "; patch mean and variance from the input" if normalised else ""
    figure.suptitle(
        f"{plans.image.mask[0].mean():.0%} of the frame and {plans.audio.mask[0].mean():.0%} of the sound hidden{note}"
        ", in grey; hatched: padding after the end of a clip",
        fontsize=10,
    )
    return figure


def sound_frames(log_mels: Tensor) -> Tensor:
    """Frames up to the end of the sound of each raw log-mel [B, T, mel], int64 [B].

    Rows of padding, and no others, are 0.0 throughout (see LogMel): silence is -15.94.
    """
    filled = (log_mels != 0).any(2).cpu()  # [B, T]
    return (filled * torch.arange(1, filled.shape[1] + 1)).amax(1)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A drawn figure as [H, W, 3] uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _to_pixels(images: Tensor) -> np.ndarray:
    """Normalised [n, 3, H, W] to uint8 [n, H, W, 3]; hidden pixels in the data set's mean colour, a grey."""
    return denormalise_images(images.nan_to_num(0.0)).permute(0, 2, 3, 1).numpy()


def _draw_clip(
    strip: SubFigure, name: str, frames: list[np.ndarray], mels: list[np.ndarray], sound_frames: int, titled: bool
) -> None:
    """One row. frames: 3 x [H, W, 3]; mels: 3 x [T, mel], of which sound_frames are no padding."""
    panels = strip.subplots(1, len(COLUMNS), width_ratios=(1, 1, 1, 1.7, 1.7, 1.7))
    strip.suptitle(printable(name[-100:]), fontsize=8, x=0.01, ha="left", parse_math=False)
    scale = scale_of(mels[0][:sound_frames])  # the same colours for the three log-mels of a clip
    for frame, panel in zip(frames, panels, strict=False):
        panel.imshow(frame)
        panel.set_axis_off()
    for mel, panel in zip(mels, panels[3:], strict=True):
        draw_log_mel(panel, mel, len(mel) / FRAMES_PER_SECOND, scale, sound_frames / FRAMES_PER_SECOND)
    for panel in panels[4:]:
        panel.set_ylabel("")
        panel.set_yticklabels([])
    draw_colour_bar(list(panels[-1:]), scale)
    for panel, title in zip(panels, COLUMNS if titled else (), strict=False):
        panel.set_title(title, fontsize=10)

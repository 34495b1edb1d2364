"""Pictures of reconstructions: for each clip its frame and its log-mel as given, as seen by the encoder, as rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from cavmae_ds.data.inspect.log_mel_image import draw_colour_bar, draw_log_mel, scale_of
from cavmae_ds.data.transforms.normalise import denormalise_images
from cavmae_ds.errors import printable
from cavmae_ds.evaluation.composite import log_mel_stages, stages
from cavmae_ds.models.common.output import PretrainOutput, Target
from cavmae_ds.models.common.patches import unpatchify

FRAMES_PER_SECOND = 100
TITLES = ("frame", "what is seen", "rebuilt"), ("log-mel", "what is heard", "rebuilt")
"""Of pictures, of log-mels."""
NOUNS = "frame", "sound"


class _Drawn(NamedTuple):
    """One target of n clips."""

    log_mels: bool
    """Else pictures."""
    parts: list[np.ndarray]
    """As given, as seen, as rebuilt: log-mels [n, T, mel] or pictures uint8 [n, H, W, 3]."""
    lengths: list[int]
    """Log-mel frames of each clip before its padding."""


def drawable(output: PretrainOutput | None) -> TypeGuard[PretrainOutput]:
    """True if there is something to draw: a model that reconstructs, and a run that asks for it."""
    return output is not None and all(target.prediction is not None for target in output.targets)


def draw_reconstructions(output: PretrainOutput, normalised: bool, clips: int, names: Sequence[str] = ()) -> Figure:
    """One row a clip, the first `clips` of a micro-batch. Needs predictions: a run with loss.mae_weight > 0.

    Targets of three channels are drawn as pictures and come first, those of one as log-mels. normalised: the model was
    trained with loss.normalise_pixels, see stages. names: of the clips of the micro-batch.
    """
    if not drawable(output):
        raise ValueError("nothing was reconstructed: loss.mae_weight is 0")
    targets = sorted(output.targets, key=_is_log_mel)
    # Those of the first chunk, where the decoder runs in chunks.
    clips = min(clips, *(len(target.prediction) for target in targets if target.prediction is not None))
    drawn = [_drawn(target, normalised, clips) for target in targets]
    figure = Figure(figsize=(14, 2.1 * clips + 0.7), layout="constrained", facecolor="white")
    heights = [1.1, *[1.0] * (clips - 1)]  # the first row has titles
    rows = figure.subfigures(clips, 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, strip in enumerate(rows):
        _draw_clip(strip, names[row] if names else "", drawn, row)
    note = "; patch mean and variance from the input" if normalised else ""
    shares = (f"{target.plan.mask[0].mean():.0%} of the {NOUNS[_is_log_mel(target)]}" for target in targets)
    figure.suptitle(
        f"{' and '.join(shares)} hidden{note}, in grey; hatched: padding after the end of a clip", fontsize=10
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


def _is_log_mel(target: Target) -> bool:
    return target.source.grid.channels == 1


def _drawn(target: Target, normalised: bool, clips: int) -> _Drawn:
    if _is_log_mel(target):
        parts = [part.numpy() for part in log_mel_stages(target, normalised, clips)]
        return _Drawn(True, parts, sound_frames(target.source.pixels[:clips]).tolist())
    patches = stages(target, normalised, clips)
    return _Drawn(False, [_to_pixels(unpatchify(part, target.source.grid)) for part in patches], [])


def _to_pixels(images: Tensor) -> np.ndarray:
    """Normalised [n, 3, H, W] to uint8 [n, H, W, 3]; hidden pixels in the data set's mean colour, a grey."""
    return denormalise_images(images.nan_to_num(0.0)).permute(0, 2, 3, 1).numpy()


def _draw_clip(strip: SubFigure, name: str, drawn: Sequence[_Drawn], row: int) -> None:
    """One row: three panels for each target. The first row has titles."""
    widths = [width for part in drawn for width in [1.7 if part.log_mels else 1.0] * 3]
    panels = strip.subplots(1, len(widths), width_ratios=widths)
    strip.suptitle(printable(name[-100:]), fontsize=8, x=0.01, ha="left", parse_math=False)
    for part, of_part in zip(drawn, panels.reshape(-1, 3), strict=True):
        values = [stage[row] for stage in part.parts]
        if part.log_mels:
            _draw_log_mels(of_part, values, part.lengths[row])
        else:
            for panel, picture in zip(of_part, values, strict=True):
                panel.imshow(picture)
                panel.set_axis_off()
        for panel, title in zip(of_part, TITLES[part.log_mels] if row == 0 else (), strict=False):
            panel.set_title(title, fontsize=10)


def _draw_log_mels(panels: Sequence[Axes], mels: Sequence[np.ndarray], length: int) -> None:
    """mels: 3 x [T, mel], of which the first `length` frames are no padding."""
    scale = scale_of(mels[0][:length])  # the same colours for the three of a clip
    for mel, panel in zip(mels, panels, strict=True):
        draw_log_mel(panel, mel, len(mel) / FRAMES_PER_SECOND, scale, length / FRAMES_PER_SECOND)
    for panel in panels[1:]:
        panel.set_ylabel("")
        panel.set_yticklabels([])
    draw_colour_bar(list(panels[-1:]), scale)

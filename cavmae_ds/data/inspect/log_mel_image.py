"""A log-mel as every picture shows it: seconds to the right, kHz upwards, colours with a bar, padding in grey."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cavmae_ds.data.transforms.log_mel import HIGHEST_HZ, LOWEST_HZ, MEL_BINS

TICKS_KHZ = (0.25, 0.5, 1, 2, 4)
GREY = "#8a8a8a"  # of axes: readable on white and on black
HIDDEN, PADDING = "#808080", "#e4e4e4"
"""Fills of patches that a model was not given, and of the time after the clip's end."""
COLOURS = "magma"


class Scale(NamedTuple):
    """Values, natural logarithms of energy, at both ends of the colours."""

    low: float
    high: float


def scale_of(*log_mels: NDArray[np.float32]) -> Scale:
    """One for all of these, of any shapes; hidden values do not count."""
    shown = [values for log_mel in log_mels if (values := log_mel[np.isfinite(log_mel)]).size]
    if not shown:
        return Scale(0.0, 1.0)
    return Scale(float(min(values.min() for values in shown)), float(max(values.max() for values in shown)))


def draw_log_mel(
    panel: Axes, log_mel: NDArray[np.float32], seconds: float, scale: Scale, sound_seconds: float | None = None
) -> None:
    """Evenly spaced in mel.

    log_mel: [T, M] raw values that last `seconds`, NaN where they are hidden. sound_seconds: what comes after is
    padding.
    """
    sound_seconds = seconds if sound_seconds is None else sound_seconds
    panel.set_facecolor(HIDDEN)  # shows through where there are no values
    panel.imshow(
        log_mel.T, origin="lower", aspect="auto", cmap=COLOURS, interpolation="nearest",
        extent=(0, seconds, -0.5, MEL_BINS - 0.5), vmin=scale.low, vmax=scale.high,
    )  # fmt: skip
    if sound_seconds < seconds:
        panel.axvspan(sound_seconds, seconds, facecolor=PADDING, edgecolor="#bdbdbd", hatch="//", linewidth=0)
    panel.set(xlim=(0, seconds), ylim=(-0.5, MEL_BINS - 0.5))
    panel.set_yticks([_bin_of(1000 * khz) for khz in TICKS_KHZ], [f"{khz:g}" for khz in TICKS_KHZ])
    panel.set_ylabel("kHz", fontsize=8, color=GREY)
    panel.set_xlabel("seconds", fontsize=8, color=GREY)
    panel.tick_params(labelsize=7, colors=GREY)
    panel.spines[:].set_visible(False)


def draw_colour_bar(panels: list[Axes], scale: Scale, shrink: float = 1.0) -> None:
    """To the right of some panels, at their foot where it is shorter than they are."""
    colours = ScalarMappable(Normalize(*scale), COLOURS)
    bar = panels[0].figure.colorbar(colours, ax=panels, pad=0.01, aspect=20 * shrink, shrink=shrink, anchor=(0, 0))
    _style(bar)


def draw_colour_legend(figure: Figure, scale: Scale) -> None:
    """Nothing but a bar, lying."""
    _style(Colorbar(figure.subplots(), ScalarMappable(Normalize(*scale), COLOURS), orientation="horizontal"))


def _style(bar: Colorbar) -> None:
    bar.locator = MaxNLocator(4, integer=True)
    bar.update_ticks()
    bar.set_label("log energy", fontsize=7, color=GREY)
    bar.ax.tick_params(labelsize=7, colors=GREY)
    bar.outline.set_visible(False)


def _bin_of(hz: float) -> float:
    """Where a frequency stands among the mel bins, whose middles are 0, 1, ... (see spectrogram.mel_bank)."""
    lowest, highest, mel = (1127 * np.log(1 + x / 700) for x in (LOWEST_HZ, HIGHEST_HZ, hz))
    return float((mel - lowest) / (highest - lowest) * (MEL_BINS + 1) - 1)

"""A few clips of a data set as pictures: some of their frames and their log-mel, where they have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.records import Records, Sample
from cavmae_ds.data.format.schema import (
    AUDIO_RATE_HZ,
    ClipFlag,
    audio_of,
    decode_frame,
    flag_names,
    frame_count,
    frame_jpeg,
    frame_times_of,
    labels_of,
)
from cavmae_ds.data.format.spread import spread
from cavmae_ds.data.inspect.log_mel_image import GREY, draw_colour_bar, draw_log_mel, scale_of
from cavmae_ds.data.transforms.log_mel import LogMel, frames_of
from cavmae_ds.errors import printable

SHOWN_FRAMES = 4


@dataclass(frozen=True)
class ShownClip:
    """What the sheet shows of a clip."""

    clip_id: str
    source: str
    start_s: float
    labels: list[str]  # class names
    flags: list[str]
    frames: list[bytes]  # at most SHOWN_FRAMES JPEG files; none of a clip without a picture
    frame_times_s: list[float]
    audio: NDArray[np.int16]  # [n], n = 0 of a clip without sound
    log_mel: NDArray[np.float32]  # [T, 128], raw

    @property
    def seconds(self) -> float:
        return len(self.audio) / AUDIO_RATE_HZ

    def wav(self) -> bytes:
        """The sound as a WAV file."""
        file = io.BytesIO()
        soundfile.write(file, self.audio, AUDIO_RATE_HZ, format="WAV", subtype="PCM_16")
        return file.getvalue()


def spread_clips(records: Records, clips: int) -> list[ShownClip]:
    """So many clips from all over the data set, the same each time. Only they are read. Raises DataError if damaged."""
    front_end = LogMel()
    return [_shown(sample, records.manifest, front_end) for sample in records.read(spread(clips, len(records)))]


def _shown(sample: Sample, manifest: Manifest, front_end: LogMel) -> ShownClip:
    audio, shown, times_s = audio_of(sample), shown_frames(frame_count(sample)), frame_times_of(sample)
    n_samples = torch.tensor([len(audio)])
    log_mel = front_end(torch.tensor(audio)[None], n_samples, int(frames_of(n_samples)))[0]  # [T, M]
    return ShownClip(
        clip_id=sample["clip_id"],
        source=sample["source"],
        start_s=sample["start_s"],
        labels=[manifest.classes[label] for label in labels_of(sample)],
        flags=flag_names(ClipFlag(int(sample["flags"]))),
        frames=[frame_jpeg(sample, k) for k in shown],
        frame_times_s=[float(times_s[k]) for k in shown],
        audio=audio,
        log_mel=log_mel.numpy(),
    )


def shown_frames(frames: int) -> list[int]:
    """Numbers of SHOWN_FRAMES of so many frames, from the first to the last; all where there are no more."""
    return (
        [k * (frames - 1) // (SHOWN_FRAMES - 1) for k in range(SHOWN_FRAMES)]
        if frames > SHOWN_FRAMES
        else [*range(frames)]
    )


def draw_sheet(clips: Sequence[ShownClip], title: str) -> Figure:
    """One row a clip: its name and labels, four frames, its log-mel."""
    figure = Figure(figsize=(12, 1.85 * len(clips) + 0.4), layout="constrained", facecolor="white")
    figure.suptitle(printable(title), fontsize=11, parse_math=False)
    rows = figure.subfigures(len(clips), 1, squeeze=False)[:, 0]
    for row, clip in zip(rows, clips, strict=True):
        words = [clip.clip_id[-60:], f"{clip.seconds:.2f} s", ", ".join(clip.labels)[:60], *clip.flags]
        row.suptitle(
            printable("   ".join(word for word in words if word)), fontsize=8, x=0.01, ha="left", parse_math=False
        )
        panels = row.subplots(1, SHOWN_FRAMES + 1, width_ratios=[1] * SHOWN_FRAMES + [3.4])
        for panel in panels[len(clip.frames) : SHOWN_FRAMES]:
            panel.set_axis_off()
        for panel, jpeg, time_s in zip(panels, clip.frames, clip.frame_times_s, strict=False):
            panel.imshow(decode_frame(jpeg))
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_xlabel(f"{time_s:.2f} s", fontsize=7, color=GREY)
            panel.spines[:].set_visible(False)
        if len(clip.audio):
            _draw_sound(panels[-1], clip)
        else:
            panels[-1].set_axis_off()
    return figure


def log_mel_png(clip: ShownClip) -> bytes:
    """The log-mel with its axes, on a transparent ground."""
    figure = Figure(figsize=(5.2, 1.75), layout="constrained")
    _draw_sound(figure.subplots(), clip)
    return png_of(figure, transparent=True)


def _draw_sound(panel: Axes, clip: ShownClip) -> None:
    scale = scale_of(clip.log_mel)
    draw_log_mel(panel, clip.log_mel, clip.seconds, scale)
    draw_colour_bar([panel], scale)


def png_of(figure: Figure, *, transparent: bool = False) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, dpi=120, transparent=transparent)
    return file.getvalue()

"""A gallery as one HTML file that needs nothing else; every sound can be heard."""

from __future__ import annotations

from functools import cache

from matplotlib.figure import Figure

from cavmae_ds.data.inspect.contact_sheet import ShownClip, png_of
from cavmae_ds.data.inspect.log_mel_image import Scale, draw_colour_legend, draw_log_mel
from cavmae_ds.data.inspect.page import data_url, render
from cavmae_ds.evaluation.gallery import COSINE, Gallery, Kinship


def gallery_page(gallery: Gallery) -> str:
    """The whole file."""
    scale = gallery.scale

    @cache  # a clip may be among the hits of many
    def log_mel_url(row: int) -> str:
        return data_url(_small_log_mel(gallery.clips[row], scale), "image/png")

    @cache
    def wav_url(row: int) -> str:
        return data_url(gallery.clips[row].wav(), "audio/wav")

    return render(
        "evaluation/gallery.html",
        title=gallery.title, gallery=gallery, explained=COSINE, kinds=Kinship, colours=_colours(scale),
        log_mel_url=log_mel_url, wav_url=wav_url,
    )  # fmt: skip


def _small_log_mel(clip: ShownClip, scale: Scale) -> bytes:
    """A PNG file on a transparent ground."""
    figure = Figure(figsize=(2.4, 1.6), layout="constrained")
    draw_log_mel(figure.subplots(), clip.log_mel, clip.seconds, scale)
    return png_of(figure, transparent=True)


def _colours(scale: Scale) -> bytes:
    """A PNG file of what the colours of log-mels stand for."""
    figure = Figure(figsize=(3.2, 0.5), layout="constrained")
    draw_colour_legend(figure, scale)
    return png_of(figure, transparent=True)

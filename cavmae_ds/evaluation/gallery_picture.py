"""A gallery as one picture: two rows a query, what its sound finds and what its frame finds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cavmae_ds.data.format.schema import decode_frame
from cavmae_ds.data.inspect.contact_sheet import ShownClip
from cavmae_ds.data.inspect.log_mel_image import Scale, draw_colour_bar, draw_log_mel
from cavmae_ds.errors import printable
from cavmae_ds.evaluation.gallery import COSINE, HITS, Gallery, Hit, Kinship, Query

COLOURS = {Kinship.partner: "#1f9d55", Kinship.same_class: "#e69f00", Kinship.other: "#c4c9d1"}
LONGEST_CAPTION = 40  # characters beside each other


def draw_gallery(gallery: Gallery) -> Figure:
    """The query on the left, its hits to the right of it, the most similar first."""
    figure = Figure(figsize=(13, 3.5 * len(gallery.queries) + 0.9), layout="constrained", facecolor="white")
    head = [gallery.title, gallery.scores, COSINE]
    figure.suptitle(
        "\n".join(textwrap.fill(printable(line), 170) for line in head if line), fontsize=9, parse_math=False
    )
    legend = [Patch(facecolor="none", edgecolor=COLOURS[kind], linewidth=3, label=kind.value) for kind in Kinship]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False)
    scale = gallery.scale
    rows = figure.subfigures(len(gallery.queries), 1, squeeze=False)[:, 0]
    for row, query in zip(rows, gallery.queries, strict=True):
        panels = row.subplots(2, HITS + 1, squeeze=False)
        _draw_query(panels, gallery, query, scale)
        draw_colour_bar(panels.ravel().tolist(), scale, shrink=0.45)
        clip = gallery.clips[query.row]
        name = "   ".join(filter(None, [clip.clip_id[-60:], ", ".join(clip.labels)[:90]]))
        row.suptitle(printable(name), fontsize=9, x=0.01, ha="left", weight="bold", parse_math=False)
    return figure


def _draw_query(panels: NDArray[np.object_], gallery: Gallery, query: Query, scale: Scale) -> None:
    """panels: [2, 1 + HITS] of Axes."""
    clip, draw_sound = gallery.clips[query.row], partial(_draw_sound, scale=scale)
    draw_sound(panels[0, 0], clip)
    _draw_frame(panels[1, 0], clip)
    for panel, search, what in zip(panels[:, 0], query[1:], ("sound finds frames", "frame finds sounds"), strict=True):
        panel.set_title(f"{what}\nits own: {search.partner_rank} of {gallery.pool}", fontsize=8, loc="left")
    draws: list[Callable[[Axes, ShownClip], None]] = [_draw_frame, draw_sound]
    for side, search, draw in zip(panels[:, 1:], query[1:], draws, strict=True):
        for panel in side[len(search.hits) :]:
            panel.set_axis_off()
        for panel, hit in zip(side, search.hits, strict=False):
            draw(panel, gallery.clips[hit.row])
            _frame_hit(panel, gallery.clips[hit.row], hit)


def _draw_frame(panel: Axes, clip: ShownClip) -> None:
    panel.imshow(decode_frame(clip.frames[0]))
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def _draw_sound(panel: Axes, clip: ShownClip, scale: Scale) -> None:
    draw_log_mel(panel, clip.log_mel, clip.seconds, scale)
    panel.set_xlabel("")  # the place of a hit's caption


def _frame_hit(panel: Axes, clip: ShownClip, hit: Hit) -> None:
    panel.spines[:].set(visible=True, color=COLOURS[hit.kinship], linewidth=4 if hit.kinship != Kinship.other else 1)
    panel.set_xlabel(hit.caption(clip.labels)[:LONGEST_CAPTION], fontsize=7, color="black", parse_math=False)

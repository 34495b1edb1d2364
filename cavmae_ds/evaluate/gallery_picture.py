"""A gallery as one picture: two rows a query, what its sound finds and what its frame finds."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cavmae_ds.data.contact_sheet import ShownClip, draw_log_mel
from cavmae_ds.data.schema import decode_frame
from cavmae_ds.evaluate.gallery import HITS, Gallery, Hit, Kinship, Query

COLOURS = {Kinship.partner: "#1f9d55", Kinship.same_class: "#e69f00", Kinship.other: "#c4c9d1"}
LONGEST_CAPTION = 40  # characters beside each other


def draw_gallery(gallery: Gallery) -> Figure:
    """The query on the left, its hits to the right of it, the most similar first."""
    figure = Figure(figsize=(13, 3.5 * len(gallery.queries) + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(gallery.title, fontsize=11, parse_math=False)
    legend = [Patch(facecolor="none", edgecolor=COLOURS[kind], linewidth=3, label=kind.value) for kind in Kinship]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False)
    rows = figure.subfigures(len(gallery.queries), 1, squeeze=False)[:, 0]
    for row, query in zip(rows, gallery.queries, strict=True):
        _draw_query(row.subplots(2, HITS + 1, squeeze=False), gallery, query)
        clip = gallery.clips[query.row]
        name = "   ".join(filter(None, [clip.clip_id[-60:], ", ".join(clip.labels)[:90]]))
        row.suptitle(name, fontsize=9, x=0.01, ha="left", weight="bold", parse_math=False)
    return figure


def _draw_query(panels: NDArray[np.object_], gallery: Gallery, query: Query) -> None:
    """panels: [2, 1 + HITS] of Axes."""
    clip = gallery.clips[query.row]
    _draw_sound(panels[0, 0], clip)
    _draw_frame(panels[1, 0], clip)
    for panel, search, what in zip(panels[:, 0], query[1:], ("sound finds frames", "frame finds sounds"), strict=True):
        panel.set_title(f"{what}\nits own: {search.partner_rank} of {gallery.pool}", fontsize=8, loc="left")
    for side, search, draw in zip(panels[:, 1:], query[1:], (_draw_frame, _draw_sound), strict=True):
        for panel in side[len(search.hits) :]:
            panel.set_axis_off()
        for panel, hit in zip(side, search.hits, strict=False):
            draw(panel, gallery.clips[hit.row])
            _frame_hit(panel, gallery.clips[hit.row], hit)


def _draw_frame(panel: Axes, clip: ShownClip) -> None:
    panel.imshow(decode_frame(clip.frames[0]))
    _bare(panel)


def _draw_sound(panel: Axes, clip: ShownClip) -> None:
    draw_log_mel(panel, clip)
    panel.set(xlabel="", ylabel="")
    _bare(panel)


def _bare(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def _frame_hit(panel: Axes, clip: ShownClip, hit: Hit) -> None:
    panel.spines[:].set(visible=True, color=COLOURS[hit.kinship], linewidth=4 if hit.kinship != Kinship.other else 1)
    panel.set_xlabel(hit.caption(clip.labels)[:LONGEST_CAPTION], fontsize=7, color="black", parse_math=False)

"""A gallery as one HTML file that needs nothing else; every sound can be heard."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from html import escape
from typing import TypeAlias

from matplotlib.figure import Figure

from cavmae_ds.data.inspect.contact_sheet import ShownClip, png_of
from cavmae_ds.data.inspect.log_mel_image import Scale, draw_colour_legend, draw_log_mel
from cavmae_ds.data.inspect.page import data_url, page
from cavmae_ds.evaluation.gallery import COSINE, Gallery, Hit, Kinship, Query, Search

Show: TypeAlias = Callable[[int], str]
"""The HTML of one side of a clip, by its row."""

STYLE = """
:root { --partner: #1f9d55; --same-class: #e69f00; }
.card h2 { font-weight: 400; margin: .9rem 0 .4rem; font-size: .875rem; }
.hits { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .6rem; align-items: start; }
.hits figure { border: 4px solid transparent; border-radius: .5rem; padding: .2rem; }
.hits figure.other { border: 1px solid var(--line); margin: 3px; }
.hits figure.partner, .legend .partner { border-color: var(--partner); }
.hits figure.same_class, .legend .same_class { border-color: var(--same-class); }
.hits .sound img { aspect-ratio: 3 / 2; border-radius: .3rem; }
.hits figcaption { overflow-wrap: anywhere; margin-top: .2rem; }
.legend img { height: 2.6rem; vertical-align: middle; }
.legend span { border: 3px solid var(--line); border-radius: .4rem; padding: .1rem .5rem; margin-right: .5rem; }
@media (max-width: 46rem) { .hits { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""


def gallery_page(gallery: Gallery) -> str:
    """The whole file."""
    legend = "".join(f'<span class="{kind.name}">{escape(kind.value)}</span>' for kind in Kinship)
    bar = f'<img alt="colours of log-mels" src="{data_url("image/png", _colours(gallery.scale))}">'
    head = "".join(f'<p class="soft">{escape(line)}</p>\n' for line in (gallery.scores, COSINE) if line)
    scale = gallery.scale
    sound = cache(lambda row: _sound(gallery.clips[row], scale))  # a clip may be among the hits of many
    cards = "".join(_card(gallery, query, sound) for query in gallery.queries)
    return page(gallery.title, f'{head}<p class="legend soft">{legend}{bar}</p>\n{cards}', STYLE)


def _card(gallery: Gallery, query: Query, sound: Show) -> str:
    clip = gallery.clips[query.row]

    def frame(row: int) -> str:
        return _frame(gallery.clips[row])

    chips = "".join(f'<span class="chip">{escape(label)}</span> ' for label in clip.labels)
    return (
        f'<article class="card"><b>{escape(clip.clip_id)}</b> {chips}\n'
        f"{_row(gallery, 'Its sound finds these frames', query.frames, sound(query.row), frame)}"
        f"{_row(gallery, 'Its frame finds these sounds', query.sounds, frame(query.row), sound)}</article>\n"
    )


def _row(gallery: Gallery, title: str, search: Search, asked: str, show: Show) -> str:
    rank = f"its own is number {search.partner_rank:,} of {gallery.pool:,}"
    cells = [f"<figure>{asked}<figcaption>asked with</figcaption></figure>\n"]
    cells += [_hit(hit, gallery.clips[hit.row], show(hit.row)) for hit in search.hits]
    return f'<h2>{title} <span class="soft">{rank}</span></h2>\n<div class="hits">\n{"".join(cells)}</div>\n'


def _hit(hit: Hit, clip: ShownClip, shown: str) -> str:
    return (
        f'<figure class="{hit.kinship.name}" title="{escape(clip.clip_id)}">{shown}'
        f"<figcaption>{escape(hit.caption(clip.labels))}</figcaption></figure>\n"
    )


def _frame(clip: ShownClip) -> str:
    return f'<img alt="frame" src="{data_url("image/jpeg", clip.frames[0])}">'


def _sound(clip: ShownClip, scale: Scale) -> str:
    picture, sound = data_url("image/png", _small_log_mel(clip, scale)), data_url("audio/wav", clip.wav())
    return (
        f'<div class="sound"><img alt="log-mel" src="{picture}">'
        f'<audio controls preload="metadata" src="{sound}"></audio></div>'
    )


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

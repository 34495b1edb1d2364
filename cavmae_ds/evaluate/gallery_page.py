"""A gallery as one HTML file that needs nothing else; every sound can be heard."""

from __future__ import annotations

import io
from collections.abc import Callable
from html import escape

import torch
from matplotlib import image
from torch.nn.functional import adaptive_avg_pool2d

from cavmae_ds.data.contact_sheet import ShownClip
from cavmae_ds.data.inspect_page import data_url, page
from cavmae_ds.evaluate.gallery import Gallery, Hit, Kinship, Query, Search

LOG_MEL_PIXELS = (64, 192)

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
.legend span { border: 3px solid var(--line); border-radius: .4rem; padding: .1rem .5rem; margin-right: .5rem; }
@media (max-width: 46rem) { .hits { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""


def gallery_page(gallery: Gallery) -> str:
    """The whole file."""
    legend = "".join(f'<span class="{kind.name}">{escape(kind.value)}</span>' for kind in Kinship)
    cards = "".join(_card(gallery, query) for query in gallery.queries)
    return page(gallery.title, f'<p class="legend soft">{legend}</p>\n{cards}', STYLE)


def _card(gallery: Gallery, query: Query) -> str:
    clip = gallery.clips[query.row]
    chips = "".join(f'<span class="chip">{escape(label)}</span> ' for label in clip.labels)
    return (
        f'<article class="card"><b>{escape(clip.clip_id)}</b> {chips}\n'
        f"{_row(gallery, 'Its sound finds these frames', query.frames, _sound(clip), _frame)}"
        f"{_row(gallery, 'Its frame finds these sounds', query.sounds, _frame(clip), _sound)}</article>\n"
    )


def _row(gallery: Gallery, title: str, search: Search, asked: str, show: Callable[[ShownClip], str]) -> str:
    rank = f"its own is number {search.partner_rank:,} of {gallery.pool:,}"
    cells = [f"<figure>{asked}<figcaption>asked with</figcaption></figure>\n"]
    cells += [_hit(hit, gallery.clips[hit.row], show(gallery.clips[hit.row])) for hit in search.hits]
    return f'<h2>{title} <span class="soft">{rank}</span></h2>\n<div class="hits">\n{"".join(cells)}</div>\n'


def _hit(hit: Hit, clip: ShownClip, shown: str) -> str:
    return (
        f'<figure class="{hit.kinship.name}" title="{escape(clip.clip_id)}">{shown}'
        f"<figcaption>{escape(hit.caption(clip.labels))}</figcaption></figure>\n"
    )


def _frame(clip: ShownClip) -> str:
    return f'<img alt="frame" src="{data_url("image/jpeg", clip.frames[0])}">'


def _sound(clip: ShownClip) -> str:
    picture, sound = data_url("image/png", _small_log_mel(clip)), data_url("audio/wav", clip.wav())
    return (
        f'<div class="sound"><img alt="log-mel" src="{picture}">'
        f'<audio controls preload="metadata" src="{sound}"></audio></div>'
    )


def _small_log_mel(clip: ShownClip) -> bytes:
    """A PNG file, low tones below, time to the right."""
    mel = torch.from_numpy(clip.log_mel).T[None].flip(1)  # [1, M, T]
    file = io.BytesIO()
    image.imsave(file, adaptive_avg_pool2d(mel, LOG_MEL_PIXELS)[0].numpy(), cmap="magma", format="png")
    return file.getvalue()

"""The inspection as one HTML file that needs nothing else: pictures and sounds are inside, and no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from cavmae_ds.data.inspect.contact_sheet import ShownClip, log_mel_png
from cavmae_ds.data.inspect.summary import Section

# Nothing may be loaded from elsewhere, whatever a clip is called.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ground: #fafaf8; --card: #ffffff; --ink: #1d2330; --soft: #667085; --line: #e3e5ea; --bar: #8fb3e8;
  --chip: #e8f0fd; --chip-ink: #21477f; --flag: #fdf0dc; --flag-ink: #7a4b00; --bad: #b3261e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #14171c; --card: #1c2027; --ink: #e6e8ec; --soft: #98a1b0; --line: #2d333d; --bar: #3f659c;
    --chip: #22344f; --chip-ink: #bcd5fb; --flag: #43331a; --flag-ink: #f6d9a6; --bad: #ff8a80; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; }}
.tables {{ columns: 2 26rem; column-gap: 1.25rem; margin-bottom: 1.25rem; }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.15rem;
  margin: 0 0 1.25rem; break-inside: avoid; }}
table {{ width: 100%; border-collapse: collapse; font-size: .875rem; }}
td {{ padding: .18rem .6rem .18rem 0; vertical-align: top; overflow-wrap: anywhere; }}
td.value {{ text-align: right; padding-right: 0; font-variant-numeric: tabular-nums; }}
table.bars td.value {{ width: 7.5rem; }}
table.bars {{ table-layout: fixed; }}
td.bar {{ width: 38%; vertical-align: middle; }}
td.bar div {{ height: .7rem; min-width: 1px; border-radius: .2rem; background: var(--bar); }}
table.facts td {{ text-align: left; }}
table.facts td:first-child {{ white-space: nowrap; width: 1%; }}
table.facts td:first-child, .note {{ color: var(--soft); }}
.note {{ font-size: .8125rem; margin: .5rem 0 0; }}
.faults {{ border-color: var(--bad); }}
.faults h2 {{ color: var(--bad); }}
.faults ul {{ margin: 0; padding-left: 1.2rem; }}
.clip {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem 1.5rem; }}
.clip header {{ grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .2rem .5rem; align-items: baseline; }}
.clip header b {{ overflow-wrap: anywhere; }}
.soft {{ color: var(--soft); font-size: .8125rem; overflow-wrap: anywhere; }}
.chip {{ background: var(--chip); color: var(--chip-ink); border-radius: 1rem; padding: .05rem .6rem;
  font-size: .8125rem; }}
.chip.flag {{ background: var(--flag); color: var(--flag-ink); }}
.frames {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; align-content: center; }}
figure {{ margin: 0; }}
figure img {{ width: 100%; aspect-ratio: 1; display: block; border-radius: .3rem; }}
figcaption {{ color: var(--soft); font-size: .75rem; text-align: center; }}
.sound img {{ width: 100%; display: block; }}
audio {{ width: 100%; height: 2.25rem; display: block; margin-top: .25rem; }}
@media (max-width: 46rem) {{ .clip {{ grid-template-columns: minmax(0, 1fr); }} }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
"""


def html_page(title: str, sections: Sequence[Section], faults: Sequence[str], clips: Sequence[ShownClip]) -> str:
    """The whole file."""
    parts: list[str] = []
    if faults:
        items = "".join(f"<li>{escape(fault)}</li>" for fault in faults)
        parts.append(f'<section class="card faults"><h2>missing or damaged</h2><ul>{items}</ul></section>\n')
    parts += ['<div class="tables">\n', *map(_table, sections), "</div>\n", *map(_card, clips)]
    return page(title, "".join(parts))


def page(title: str, body: str, style: str = "") -> str:
    """A whole file of this body; it may load nothing but what is in it. Body and style are HTML and CSS."""
    return _PAGE.format(title=escape(title), body=body, style=style)


def _table(section: Section) -> str:
    bars = any(row.share is not None for row in section.rows)
    lines = []
    for row in section.rows:
        bar = f'<div style="width:{row.share:.1%}"></div>' if row.share else ""
        lines.append(
            f"<tr><td>{escape(row.name)}</td>"
            + (f'<td class="bar">{bar}</td>' if bars else "")
            + f'<td class="value">{escape(row.value)}</td></tr>\n'
        )
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    kind = "bars" if bars else "facts"
    return (
        f'<section class="card"><h2>{escape(section.title)}</h2>\n<table class="{kind}">\n{"".join(lines)}</table>'
        f"{note}</section>\n"
    )


def _card(clip: ShownClip) -> str:
    chips = [f'<span class="chip">{escape(label)}</span>' for label in clip.labels]
    chips += [f'<span class="chip flag">{escape(flag)}</span>' for flag in clip.flags]
    origin = f"{clip.source} from {clip.start_s:.2f} s" if clip.start_s else clip.source
    frames = "".join(
        f'<figure><img alt="frame" src="{data_url("image/jpeg", jpeg)}">'
        f"<figcaption>{time_s:.2f} s</figcaption></figure>"
        for jpeg, time_s in zip(clip.frames, clip.frame_times_s, strict=True)
    )
    return (
        f'<article class="card clip"><header><b>{escape(clip.clip_id)}</b>{"".join(chips)}'
        f'<span class="soft">{clip.seconds:.2f} s, {escape(origin)}</span></header>\n'
        f'<div class="frames">{frames}</div>\n'
        f'<div class="sound"><img alt="log-mel" src="{data_url("image/png", log_mel_png(clip))}">'
        f'<audio controls preload="metadata" src="{data_url("audio/wav", clip.wav())}"></audio></div></article>\n'
    )


def data_url(kind: str, content: bytes) -> str:
    """A file of this kind, for example image/png, as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

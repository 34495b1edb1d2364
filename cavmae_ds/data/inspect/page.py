"""The inspection as one HTML file that needs nothing else: pictures and sounds are inside, and no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cavmae_ds.data.inspect.contact_sheet import ShownClip, log_mel_png
from cavmae_ds.data.inspect.summary import Section


def html_page(title: str, sections: Sequence[Section], faults: Sequence[str], clips: Sequence[ShownClip]) -> str:
    """The whole file."""
    return render(
        "data/inspect/inspection.html",
        title=title, sections=sections, faults=faults, clips=clips, log_mel_png=log_mel_png,
    )  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A whole file from a template of this package, by its path in it; every text among the values is escaped.

    Templates have a filter for what is inside the page: `content | data_url("image/png")`.
    """
    environment = Environment(
        loader=PackageLoader("cavmae_ds", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["data_url"] = data_url
    return environment.get_template(template).render(values)


def data_url(content: bytes, kind: str) -> str:
    """A file of this kind, for example image/png, as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

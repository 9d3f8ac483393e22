"""HTML as values, with text escaped on construction, and images as data URIs.

No caption or file name can become markup. Templates (Jinja2) would shorten ``document`` alone, from
18 lines to 10 and a loader; the other elements are built from the values that the same function
computes, and mypy checks these calls.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from clipmill.images import decode_rgb

_FOLDER = Path(__file__).parent
# Nothing is fetched, framed or run, whatever a string contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_VOID = frozenset({"br", "img", "meta"})
_NUM_SERIES = 6  # of page.css


class Html(str):
    """Markup; any other string is text."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child]"
"""Text, markup, or several of them."""


def tag(name: str, /, *children: Child, **attributes: str | float) -> Html:
    """Build an element; ``class_`` is spelled ``class``, and ``stroke_width`` ``stroke-width``."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    if name in _VOID:
        return Html(f"<{name}{spelled}>")
    return Html(f"<{name}{spelled}>{concat(*children)}</{name}>")


def concat(*children: Child) -> Html:
    """Concatenate the children, escaping text."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        else:
            parts.append(concat(*child))
    return Html("".join(parts))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    anchor: str
    """Name in links."""
    heading: str
    """Heading, and entry in the contents."""
    body: Html
    """Content after the heading."""


def section(anchor: str, heading: str, *children: Child) -> Section:
    """Build a part of the page."""
    return Section(anchor, heading, concat(*children))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = ""
) -> Html:
    """Build a table whose rows begin with their heading; a cell that is a ``td`` is kept."""
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", (tag("th", name, scope="col") for name in head))),
            tag("tbody", (_row(cells) for cells in rows)),
            class_=class_,
        ),
        class_="scroll",
    )


def _row(cells: Sequence[str]) -> Html:
    first, *rest = cells
    return tag(
        "tr",
        tag("th", first, scope="row"),
        (c if isinstance(c, Html) and c.startswith("<td") else tag("td", c) for c in rest),
    )


def details(summary: str, *children: Child) -> Html:
    """Build a collapsible section."""
    return tag("details", tag("summary", summary), *children)


def paragraph(*children: Child, class_: str = "", dir_: str = "") -> Html:
    """Build a paragraph; ``dir_="auto"`` for text of any direction."""
    return tag("p", *children, class_=class_, dir=dir_)


def empty_section(reason: str) -> Html:
    """Build the note of a section that has nothing to show."""
    return paragraph(reason, class_="missing")


def series_color(index: int) -> str:
    """Return the CSS color of a label, the same in all of the page."""
    return f"var(--series-{index % _NUM_SERIES})"


def document(
    title: str, header: Html, sections: Sequence[Section], *, stylesheets: Sequence[str] = ()
) -> str:
    """Build a page; ``stylesheets`` name CSS files of this package that follow ``page.css``."""
    style = "".join((_FOLDER / f"{name}.css").read_text() for name in ("page", *stylesheets))
    contents = tag(
        "nav",
        (tag("a", part.heading, href=f"#{part.anchor}") for part in sections),
        aria_label="Contents",
    )
    parts = (tag("section", tag("h2", p.heading), p.body, id=p.anchor) for p in sections)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", tag("main", header, contents, parts))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


_MAX_SIDE = 384
"""Maximum longer side, pixels: the page's largest display size on a dense screen."""
_PIXELATED_BELOW = 160
"""Longer side below which an image is enlarged without smoothing, pixels."""


def image_tag(data: bytes, alt: str) -> Html:
    """Build an image element of a JPEG, PNG or WebP file, downscaled if large.

    The file is decoded and encoded again, which strips its metadata.
    """
    image = decode_rgb(data)
    width, height = image.size
    buffer = io.BytesIO()
    if max(width, height) > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="WEBP", quality=85)
        kind = "webp"
    else:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    pixelated = max(width, height) < _PIXELATED_BELOW
    return tag(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
        alt=alt,
        width=image.width,
        height=image.height,
        class_="picture pixels" if pixelated else "picture",
    )


def image_row(cells: list[tuple[str, Html]]) -> Html:
    """Build a row of images, each below its caption."""
    figures = (tag("figure", tag("figcaption", caption), image) for caption, image in cells)
    return tag("div", figures, class_="strip")

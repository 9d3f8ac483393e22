"""HTML as values: text is escaped on its way in, so that no caption or file name is ever markup."""

from collections.abc import Iterable, Sequence
from html import escape

from clipmill.analysis.style import STYLE

# Nothing is fetched, framed or run, whatever a string that came in may say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_VOID = frozenset({"br", "img", "meta"})


class Html(str):
    """Markup; any other string is text."""

    __slots__ = ()


Child = str | Iterable[str]
"""Text, markup, or several of them."""


def tag(name: str, *children: Child, **attributes: str | float) -> Html:
    """An element; ``class_`` is spelled ``class``, and ``stroke_width`` ``stroke-width``."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    if name in _VOID:
        return Html(f"<{name}{spelled}>")
    return Html(f"<{name}{spelled}>{together(*children)}</{name}>")


def together(*children: Child) -> Html:
    """The children one after another, those that are text escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        else:
            parts.append(together(*child))
    return Html("".join(parts))


def section(anchor: str, heading: str, *children: Child) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", heading), *children, id=anchor)


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = ""
) -> Html:
    """A table whose rows begin with their heading; a cell that is a ``td`` already is kept."""
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
    """What most readers can pass over, folded."""
    return tag("details", tag("summary", summary), *children)


def paragraph(*children: Child, class_: str = "") -> Html:
    """A paragraph."""
    return tag("p", *children, class_=class_)


def missing(words: str) -> Html:
    """Says that a section has nothing to show, and why."""
    return paragraph(words, class_="missing")


def document(title: str, header: Html, sections: Sequence[tuple[str, Html]]) -> str:
    """A whole page; ``sections`` pair the words for the list of contents with a section."""
    anchors = [(words, part.split('id="', 1)[1].split('"', 1)[0]) for words, part in sections]
    contents = tag(
        "nav",
        (tag("a", words, href=f"#{anchor}") for words, anchor in anchors),
        aria_label="Contents",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    body = tag("body", tag("main", header, contents, (part for _, part in sections)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"

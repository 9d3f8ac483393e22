"""One sample of a dataset on a page."""

from collections.abc import Iterator, Mapping
from typing import Any

from clipmill.analysis.histogram import number, place, share_below
from clipmill.analysis.page import Html, paragraph, tag, together
from clipmill.analysis.pictures import picture
from clipmill.analysis.sample_details import KindOfCaption, SampleDetails, Verdict
from clipmill.data.distribution import Distribution
from clipmill.errors import BadSampleError

# Characters of a caption that are shown: some are as long as a book.
_MOST_CHARACTERS = 500

Scores = Mapping[str, Mapping[str, Distribution]]


def sample_card(
    details: SampleDetails, rank: int, colours: Mapping[str, str], scores: Scores
) -> Html:
    """The sample with all that is known of it; ``colours`` are those of the kinds of captions."""
    record = details.record
    kinds = (_kind(kind, colours[kind.kind], scores) for kind in details.captions)
    return tag(
        "article",
        tag("div", paragraph(f"{rank}", class_="rank"), _picture(details), class_="shown"),
        tag("div", *kinds, class_="kinds"),
        _about(details, scores),
        class_="sample",
        id=f"uid-{record.uid}",
    )


def _picture(details: SampleDetails) -> Html:
    try:
        # The captions beside it say what the picture shows.
        return picture(details.image, f"Picture {details.record.uid}")
    except BadSampleError as bad:
        return tag("div", f"{bad.reason}: {bad.detail}", class_="broken")


def _kind(kind: KindOfCaption, colour: str, scores: Scores) -> Html:
    name = kind.kind.removeprefix("captions/")
    per_text = [
        " · ".join(
            f"{key} {_value(values[i])}"
            for key, values in kind.facts.items()
            if isinstance(values, list) and len(values) == len(kind.texts)
        )
        for i in range(len(kind.texts))
    ]
    texts = [
        together(_text(text), " " if note else "", tag("small", note) if note else "")
        for text, note in zip(kind.texts, per_text, strict=True)
    ]
    if len(texts) == 1:
        body = tag("p", texts[0], dir="auto")
    else:
        body = tag("ol", (tag("li", text, dir="auto") for text in texts))
    rows = (
        _score(layer, value, _of_kind(scores.get(layer, {}), kind.kind))
        for layer, value in kind.scores.items()
    )
    whole = {k: v for k, v in kind.facts.items() if not isinstance(v, list)}
    words = ", ".join(f"{len(text.split()):,}" for text in kind.texts)
    facts = [f"{words} word{'' if words == '1' else 's'}", *_facts(whole)]
    return tag(
        "div",
        tag("h3", tag("i"), name, style=f"color: {colour}"),
        body,
        paragraph(" · ".join(facts), class_="facts-line"),
        tag("ul", rows, class_="scores", style=f"color: {colour}") if kind.scores else "",
        class_="kind",
    )


def _text(text: str) -> Html:
    more = len(text) - _MOST_CHARACTERS
    if more <= 0:
        return together(text)
    rest = tag("span", f"… {more:,} more characters", class_="rest")
    return together(text[:_MOST_CHARACTERS], rest)


def _of_kind(columns: Mapping[str, Distribution], kind: str) -> Distribution | None:
    return columns.get(kind) or columns.get(kind.partition("/")[2])


def _score(name: str, value: float | None, distribution: Distribution | None) -> Html:
    if value is None:
        return tag("li", tag("span", name, class_="name"), tag("span", "missing", class_="missing"))
    gauge: Html | str = ""
    if distribution and distribution.count:
        width = f"width: {100 * place(value, distribution):.1f}%"
        title = f"above {share_below(value, distribution):.0%} of all"
        gauge = tag("span", tag("i", style=width), class_="gauge", title=title)
    words = tag("span", name, class_="name")
    ink = tag("b", number(value), style="color: var(--ink)")
    return tag("li", words, ink, gauge)


def _about(details: SampleDetails, scores: Scores) -> Html:
    record = details.record
    parts: list[Html] = [_pill(verdict) for verdict in details.verdicts]
    for name, value in details.scores.items():
        layer, _, column = name.partition(": ")
        distribution = scores.get(layer, {}).get(column)
        shown = "missing" if value is None else number(value)
        share = (
            f", above {share_below(value, distribution):.0%}"
            if value is not None and distribution and distribution.count
            else ""
        )
        parts.append(tag("span", f"{name} {shown}{share}"))
    link = tag("a", tag("code", record.uid), href=f"#uid-{record.uid}")
    size = f"{record.width} x {record.height} pixels, {record.image_bytes / 1000:,.1f} kB"
    parts += [link, tag("span", size), tag("code", record.origin)]
    parts.append(tag("span", f"{details.shard}, row {details.row}"))
    return tag("div", *parts, class_="about")


def _pill(verdict: Verdict) -> Html:
    rule = verdict.rule.removeprefix("select/")
    by = f" by {verdict.refused_by}" if verdict.refused_by else ""
    words = " · ".join(
        [f"{rule}: {'kept' if verdict.kept else f'refused{by}'}", *_facts(verdict.facts)]
    )
    return tag("span", words, class_=f"pill {'kept' if verdict.kept else 'refused'}")


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        yield name if value is True else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return number(value) if isinstance(value, float) else str(value)

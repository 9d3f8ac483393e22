"""A study on one page: tables with error bars beside the paper's, plots, samples, traces."""

import base64
from collections.abc import Mapping

from clipmill.analysis.attention import attention_charts, attention_from_json
from clipmill.analysis.page import (
    Html,
    Section,
    details,
    document,
    paragraph,
    section,
    table,
    tag,
    together,
)
from clipmill.analysis.pictures import picture
from clipmill.analysis.provenance import environment
from clipmill.analysis.verdict import listed
from clipmill.study import plots, tables
from clipmill.study.config import TableName
from clipmill.study.findings import Findings
from clipmill.study.paper import PAPER
from clipmill.study.result import StudyResult
from clipmill.study.scene_captions import Truth
from clipmill.study.words import verdict

_CAVEAT = (
    "A miniature world: drawn scenes, small encoders, minutes of training. It can show whether "
    "the mechanism works as the paper says and which way; it can't show how large the effect is "
    "on photographs, nor for encoders of full size."
)
_HEADINGS: dict[TableName, tuple[str, str]] = {
    "sources": ("Caption sources", "The same pictures, seen as often; only the captions differ."),
    "objectives": (
        "CLIP against other pretraining",
        "At the seen samples that stand with the name; from scratch, none.",
    ),
    "mobile": (
        "Mobile encoders",
        "A small mobile network: by labels, by CLIP, and by CLIP that learns from a teacher.",
    ),
}


def study_page(result: StudyResult) -> str:
    """A self-contained HTML page."""
    judged = result.judged
    header = together(
        paragraph("clipmill study captions", class_="kicker"),
        tag("h1", "Does caption quality make better dense features?"),
        *_lead(judged),
        paragraph(_CAVEAT, class_="caveat"),
    )
    parts = [
        section(
            name, title, paragraph(words), tables.comparison(result.findings(name), PAPER[name])
        )
        for name, (title, words) in _HEADINGS.items()
        if len(result.config.table(name)) > 1
    ]
    parts += _plots(result)
    parts += [_quality(result), _samples(result), _traces(result)]
    return document("Study of captions", header, parts, style=tables.STYLE)


def _lead(found: Findings) -> list[Html]:
    first, *others = verdict(found)
    rest = tag("ul", [tag("li", sentence) for sentence in others])
    return [paragraph(first, class_="lead"), *([rest] if others else [])]


def _plots(result: StudyResult) -> list[Section]:
    found = []
    sources = result.config.table("sources")
    if len([c for c in sources if plots.quality_of(result, c) is not None]) > 1:
        words = (
            "Of the colours and objects in a picture, the share that captions name; of captions of "
            "both kinds, the mean."
        )
        charts = plots.quality_charts(result)
        found.append(section("captions", "Captions and transfer", paragraph(words), charts))
    if any(c.fraction < 1 for c in result.config.table("scaling")):
        words = "The same samples seen, of fewer pictures." + _one_seed(result, "scaling")
        charts = plots.scaling(result)
        found.append(section("scaling", "Data scaling", paragraph(words), charts))
    if len(result.config.table("dose")) > 2:
        words = "True captions, of which a share is another picture's." + _one_seed(result, "dose")
        charts = plots.dose_charts(result)
        found.append(section("dose", "Dose and response", paragraph(words), charts))
    if plots.has_costs(result):
        words = (
            "Arithmetic of pretraining, and of captioning each picture once; making the captioner "
            "is left out, since it serves any number of data sets."
            + _one_seed(result, "objectives")
        )
        found.append(section("cost", "Equal cost", paragraph(words), plots.cost_charts(result)))
    if result.attention:
        statistics = {n: attention_from_json(value) for n, value in result.attention.items()}
        found.append(
            section(
                "attention",
                "Attention distance",
                paragraph(
                    "Each dot is a head of the ViT with the first seed: how far from a patch those "
                    "lie that it attends to (CLIP-QC, Figure 3)."
                ),
                attention_charts(statistics),
            )
        )
    names = {c.layer: c.name for c in result.config.table("sources")}
    if {"terse", "rich"} <= names.keys():
        first = result.config.table("sources")[0].name
        pair = plots.truth_and_detail(
            result.findings("sources"), first, names["terse"], names["rich"]
        )
        found.append(section("detail", "Truth and detail", pair))
    return found


def _one_seed(result: StudyResult, table: TableName) -> str:
    is_one = len(result.config.seeds_of(table)) == 1
    return " One seed, which can't tell an effect from noise." if is_one else ""


def _quality(result: StudyResult) -> Section:
    body = [
        [
            name,
            *_percents(q.truth),
            "" if q.clip_score is None else f"{q.clip_score:.1f}",
            f"{q.num_words:.1f}",
            f"{q.num_different:,}",
        ]
        for name, q in result.quality.items()
    ]
    head = [
        *("Captions", "Of what is there, named", "True words", "Wholly true"),
        *("CLIP score", "Words", "Different captions"),
    ]
    note = (
        "Of colours and objects: the share of those in the picture that its caption names, and of "
        "those that it names, which are in the picture. A caption is wholly true that names some "
        "and none that isn't there. CLIP score: 100 times the cosine of picture and caption"
        + (f", by the CLIP of {result.config.judge!r}." if result.config.judge else ".")
    )
    if result.retold:
        note += (
            f" Not every part has the same {listed(result.retold)} captions: a captioner is "
            "trained for each, and processors round differently. Told of are the first part's."
        )
    return section("quality", "Quality of the captions", table(note, head, body))


def _percents(truth: Truth | None) -> list[str]:
    values = (truth.named, truth.words, truth.pictures) if truth else ()
    return [f"{value:.1f} %" for value in values] or [""] * 3


def _samples(result: StudyResult) -> Section:
    cards = []
    for number, sample in enumerate(result.samples, start=1):
        captions = [(tag("dt", kind), tag("dd", text)) for kind, text in sample.captions.items()]
        image = picture(base64.b64decode(sample.image_base64), f"Picture {number}")
        cards.append(tag("figure", image, tag("figcaption", tag("dl", captions))))
    words = "Evenly apart in the first shard rather than picked."
    return section("samples", "Samples", paragraph(words), tag("div", cards, class_="samples"))


def _traces(result: StudyResult) -> Section:
    hours = sum(part.seconds for part in result.parts) / 3600
    note = f"{hours:.2f} hours of all starts, by the clock; what was made before took none."
    body = [
        [
            tag("code", part.command or "a library call"),
            f"{part.seconds / 3600:.2f}",
            tag("td", tag("code", part.digest[:12])),
        ]
        for part in result.parts
    ]
    made = table(note, ["Command", "Hours", "Config"], body, class_="small")
    facts = _facts("Versions and machine.", *(part.environment for part in result.parts))
    return _sources(result.findings(), made, facts)


def _facts(note: str, *environments: Mapping[str, str]) -> Html:
    """Each fact once, in all the ways that it was."""
    names = dict.fromkeys(name for found in environments for name in found)
    body = [
        [name, "; ".join(dict.fromkeys(found[name] for found in environments if name in found))]
        for name in names
    ]
    return table(note, ["Fact", "Value"], body, class_="small")


def _sources(found: Findings, *tables: Html) -> Section:
    names = dict.fromkeys(name for run in found.runs for name in run.evaluations)
    runs = [
        [
            f"{run.condition}, seed {run.seed}",
            *_codes(run.encoder, *(run.evaluations.get(name, "") for name in names)),
        ]
        for run in found.runs
    ]
    head = ["Run", "Encoder", *(f"Evaluation, {name}" for name in names)]
    return section(
        "traces",
        "Where each number comes from",
        *tables,
        details(
            f"All {len(runs)} runs",
            paragraph("clipmill lineage URI draws any of them back to source files."),
            table("By seed and condition.", head, runs, class_="small"),
        ),
    )


def _codes(*uris: str) -> list[Html]:
    return [tag("td", tag("code", uri)) for uri in uris]


def findings_page(found: Findings) -> str:
    """The table of anybody's evaluations, beside the paper's."""
    header = together(
        paragraph("clipmill report", class_="kicker"),
        tag("h1", f"{len(found.conditions)} encoders side by side"),
        *_lead(found),
    )
    paper = [row for rows in PAPER.values() for row in rows]
    facts = _facts("Versions and machine that wrote this page.", environment())
    results = tables.comparison(found, paper)
    parts = [section("results", "Results", results), _sources(found, facts)]
    return document("Encoders side by side", header, parts, style=tables.STYLE)

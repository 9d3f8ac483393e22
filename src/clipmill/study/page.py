"""HTML page of a study: summary, tables with error bars, charts, samples, provenance."""

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from clipmill.report.attention import attention_charts, attention_from_json
from clipmill.report.format import join_words
from clipmill.report.html.charts import IntervalPoint, interval_chart
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    details,
    document,
    image_tag,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.report.sections.provenance import environment
from clipmill.study import tables
from clipmill.study.config import ConditionConfig, TableName
from clipmill.study.result import StudyResult
from clipmill.study.scene_captions import CaptionAccuracy
from clipmill.study.tables import (
    PAPER,
    PowerLaw,
    ResultsTable,
    bootstrap,
    format_difference,
    format_header,
    format_value,
    power_law,
    summary_sentences,
    trend_pvalue,
)

_CAVEAT = (
    "A miniature world: drawn scenes, small encoders, minutes of training. It can show whether "
    "the mechanism works as the paper says and which way; it can't show how large the effect is "
    "on photographs, nor for encoders of full size."
)


_DASHED = paragraph("Dashed: a power law fitted to each.", class_="caveat")


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
    """Return a self-contained HTML page."""
    headline = result.headline_table
    header = concat(
        paragraph("clipmill study captions", class_="kicker"),
        tag("h1", "Does caption quality make better dense features?"),
        *_summary(headline),
        paragraph(_CAVEAT, class_="caveat"),
    )
    parts = [
        section(name, title, paragraph(note), tables.comparison(result.table(name), PAPER[name]))
        for name, (title, note) in _HEADINGS.items()
        if len(result.config.conditions_of(name)) > 1
    ]
    parts += _chart_sections(result)
    parts += [_quality(result), _samples(result), _traces(result)]
    return document("Study of captions", header, parts, stylesheets=["intervals"])


def comparison_page(results: ResultsTable) -> str:
    """Return a page with the table of any evaluations, and the paper's values."""
    header = concat(
        paragraph("clipmill study compare", class_="kicker"),
        tag("h1", f"{len(results.conditions)} encoders side by side"),
        *_summary(results),
    )
    paper = [row for rows in PAPER.values() for row in rows]
    facts = _facts("Versions and machine that wrote this page.", environment())
    table = tables.comparison(results, paper)
    parts = [section("results", "Results", table), _sources(results, facts)]
    return document("Encoders side by side", header, parts, stylesheets=["intervals"])


def _summary(results: ResultsTable) -> list[Html]:
    first, *others = summary_sentences(results)
    bullets = [tag("ul", [tag("li", sentence) for sentence in others])] if others else []
    return [paragraph(first, class_="lead"), *bullets]


def _chart_sections(result: StudyResult) -> list[Section]:
    sections = []
    sources = result.config.conditions_of("sources")
    if len([c for c in sources if quality_of(result, c) is not None]) > 1:
        note = (
            "Of the colors and objects in a picture, the share that captions name; of captions of "
            "both kinds, the mean."
        )
        charts = quality_charts(result)
        sections.append(section("captions", "Captions and transfer", paragraph(note), charts))
    if any(c.fraction < 1 for c in result.config.conditions_of("scaling")):
        note = "The same samples seen, of fewer pictures." + _one_seed(result, "scaling")
        charts = scaling_charts(result)
        sections.append(section("scaling", "Data scaling", paragraph(note), charts))
    if len(result.config.conditions_of("dose")) > 2:
        note = "True captions, of which a share is another picture's." + _one_seed(result, "dose")
        charts = noise_level_charts(result)
        sections.append(section("dose", "Dose and response", paragraph(note), charts))
    if has_costs(result):
        note = (
            "Arithmetic of pretraining, and of captioning each picture once; making the captioner "
            "is left out, since it serves any number of data sets."
            + _one_seed(result, "objectives")
        )
        sections.append(section("cost", "Equal cost", paragraph(note), cost_charts(result)))
    if result.attention:
        statistics = {n: attention_from_json(value) for n, value in result.attention.items()}
        sections.append(
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
    names = {c.layer: c.name for c in result.config.conditions_of("sources")}
    if {"terse", "rich"} <= names.keys():
        first = result.config.conditions_of("sources")[0].name
        pair = truth_and_detail(result.table("sources"), first, names["terse"], names["rich"])
        sections.append(section("detail", "Truth and detail", pair))
    return sections


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
        "Of colors and objects: the share of those in the picture that its caption names, and of "
        "those that it names, which are in the picture. A caption is wholly true that names some "
        "and none that isn't there. CLIP score: 100 times the cosine of picture and caption"
        + (
            f", by the CLIP of {result.config.scoring_clip!r}."
            if result.config.scoring_clip
            else "."
        )
    )
    if result.varying_captions:
        note += (
            f" Not every part has the same {join_words(result.varying_captions)} captions: a "
            "captioner is trained for each, and processors round differently. Shown are the first "
            "part's."
        )
    return section("quality", "Quality of the captions", table(note, head, body))


def _percents(accuracy: CaptionAccuracy | None) -> list[str]:
    values = (accuracy.named, accuracy.words, accuracy.pictures) if accuracy else ()
    return [f"{value:.1f} %" for value in values] or [""] * 3


def _samples(result: StudyResult) -> Section:
    cards = []
    for number, sample in enumerate(result.samples, start=1):
        captions = [(tag("dt", kind), tag("dd", text)) for kind, text in sample.captions.items()]
        image = image_tag(base64.b64decode(sample.image_base64), f"Picture {number}")
        cards.append(tag("figure", image, tag("figcaption", tag("dl", captions))))
    note = "Evenly apart in the first shard rather than picked."
    return section("samples", "Samples", paragraph(note), tag("div", cards, class_="samples"))


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
    commands = table(note, ["Command", "Hours", "Config"], body, class_="small")
    facts = _facts("Versions and machine.", *(part.environment for part in result.parts))
    return _sources(result.table(), commands, facts)


def _facts(note: str, *environments: Mapping[str, str]) -> Html:
    """Return a table with each fact once, and all its values."""
    names = dict.fromkeys(name for facts in environments for name in facts)
    body = [
        [name, "; ".join(dict.fromkeys(facts[name] for facts in environments if name in facts))]
        for name in names
    ]
    return table(note, ["Fact", "Value"], body, class_="small")


def _sources(results: ResultsTable, *tables: Html) -> Section:
    names = dict.fromkeys(name for run in results.runs for name in run.evaluations)
    runs = [
        [
            f"{run.condition}, seed {run.seed}",
            *_code_cells(run.encoder, *(run.evaluations.get(name, "") for name in names)),
        ]
        for run in results.runs
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


def _code_cells(*uris: str) -> list[Html]:
    return [tag("td", tag("code", uri)) for uri in uris]


def noise_level_charts(result: StudyResult) -> Html:
    """Draw each transfer over the share of wrong captions."""
    conditions = result.config.conditions_of("dose")
    conditions = sorted(conditions, key=lambda c: c.caption_noise or 0.0)
    results = result.table("dose")
    charts = [_noise_level_chart(results, conditions, t) for t in results.transfers]
    return tag("div", charts, class_="charts")


def _noise_level_chart(
    results: ResultsTable, conditions: list[ConditionConfig], transfer: str
) -> Html:
    values = [results.values(c.name, transfer) for c in conditions]
    points = [
        _interval_point(c.caption_noise or 0.0, v) for c, v in zip(conditions, values, strict=True)
    ]
    note = f"monotone trend: p = {trend_pvalue(values):.2g}"
    return interval_chart(
        format_header(results, transfer), note, {"": points}, x_name="wrong captions, percent"
    )


def quality_charts(result: StudyResult) -> Html:
    """Draw each transfer over the share of the images' content that the captions name."""
    sources = [
        c for c in result.config.conditions_of("sources") if quality_of(result, c) is not None
    ]
    results, charts = result.table("sources"), []
    for transfer in results.transfers:
        points = {
            c.name: [
                _interval_point(quality_of(result, c) or 0.0, results.values(c.name, transfer))
            ]
            for c in sources
        }
        charts.append(
            interval_chart(
                format_header(results, transfer),
                "",
                points,
                x_name="of what is there, named, percent",
            )
        )
    return tag("div", charts, class_="charts")


def quality_of(result: StudyResult, condition: ConditionConfig) -> float | None:
    """Return the share of content that a condition's captions name, percent (mean of kinds)."""
    names = {"real": ["real"], "synthetic": [condition.layer], "both": ["real", condition.layer]}
    qualities = [result.quality[n] for n in names[condition.captions] if n in result.quality]
    shares = [quality.truth.named for quality in qualities if quality.truth]
    return sum(shares) / len(shares) if shares else None


def scaling_charts(result: StudyResult) -> Html:
    """Draw each transfer over the number of images; tabulate the data that quality saves."""
    series = dict(_by_captions(result.config.conditions_of("scaling")))
    num_pairs = result.num_pairs
    results, first = result.table("scaling"), next(iter(series))
    charts, rows = [], []
    for transfer in results.transfers:
        title = format_header(results, transfer)
        groups = {
            name: [
                _interval_point(round(num_pairs * c.fraction), results.values(c.name, transfer))
                for c in conditions
            ]
            for name, conditions in series.items()
        }
        charts.append(_logarithmic_chart(title, groups, x_name="pictures"))
        better = 1 if results.metric(transfer).higher_is_better else -1
        rows += [
            [f"{title}, {name}", *_equivalent_data(groups[first][-1], group, better)]
            for name, group in groups.items()
            if name != first and len(group) > 1
        ]
    note = f"Pictures that it needs for what {first} reaches with all {num_pairs:,}, and the factor"
    return concat(
        tag("div", charts, class_="charts"),
        _DASHED,
        table(f"{note} saved.", ["Transfer, captions", "Pictures", "Factor"], rows),
    )


def _logarithmic_chart(
    title: str, groups: Mapping[str, list[IntervalPoint]], *, x_name: str, unit: float = 1
) -> Html:
    """Draw power laws through means on logarithmic axes, with ``x`` labeled in ``unit``.

    Where a value isn't positive, means are joined, and the vertical axis is linear.
    """
    is_positive = all(s.low > 0 for group in groups.values() for s in group)
    laws = {name: _law(group) for name, group in groups.items()}
    fits = {name: [law.at(s.x) for s in groups[name]] for name, law in laws.items() if law}
    return interval_chart(
        title,
        "both axes logarithmic" if is_positive else "on a logarithmic axis",
        {name: [replace(s, x=math.log10(s.x)) for s in g] for name, g in groups.items()},
        x_name=x_name,
        x_labels={math.log10(s.x): _short(s.x / unit) for s in next(iter(groups.values()))},
        fits=fits if is_positive else None,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _law(group: list[IntervalPoint]) -> PowerLaw | None:
    return power_law([s.x for s in group], [s.mean for s in group])


def _by_captions(conditions: list[ConditionConfig]) -> Iterator[tuple[str, list[ConditionConfig]]]:
    """Group conditions that differ in their fraction alone, under the name of the full one."""
    for full in conditions:
        if full.fraction == 1:
            same = [
                c
                for c in conditions
                if (c.captions, c.layer, c.encoder) == (full.captions, full.layer, full.encoder)
            ]
            yield full.name, sorted(same, key=lambda c: c.fraction)


def _equivalent_data(end: IntervalPoint, own: list[IntervalPoint], better: int) -> list[str]:
    """Format the number of images at which a law reaches ``end``, and the factor saved."""
    law = _law(own)
    if law is None or law.exponent * better <= 0:
        return ["more pictures don't help here", ""]
    needed = law.inverse(end.mean)
    return [f"{needed:,.0f}", f"{end.x / needed:.1f}"]


def has_costs(result: StudyResult) -> bool:
    """Return whether two kinds of captions were used at several budgets, at a known cost."""
    return len(_by_budget(result)) > 1


def cost_charts(result: StudyResult) -> Html:
    """Draw each transfer over compute, captioning included; tabulate results at equal cost."""
    results, charts, rows = result.table("objectives"), [], []
    series = _by_budget(result)
    first, *others = series
    for transfer in results.transfers:
        title, metric = format_header(results, transfer), results.metric(transfer)
        groups = {
            name: [
                _interval_point(result.costs[c.name].total, results.values(c.name, transfer))
                for c in conditions
            ]
            for name, conditions in series.items()
        }
        charts.append(
            _logarithmic_chart(title, groups, x_name="TFLOPs, captions included", unit=1e12)
        )
        law = _law(groups[first])
        if law is None:
            continue
        for name in others:
            end = groups[name][-1]
            bought = law.at(end.x)
            change = metric.improvement(end.mean, bought)
            values = (
                format_value(bought, metric),
                format_value(end.mean, metric),
                format_difference(change, metric),
            )
            rows.append([f"{title}, {name}", f"{end.x / 1e12:.3g}", *values])
    head = ["Transfer, captions", "TFLOPs", f"{first} at that cost", "Its own", "Better by"]
    note = f"What more training on {first} would give by its power law, for the same cost."
    return concat(tag("div", charts, class_="charts"), _DASHED, table(note, head, rows))


def _by_budget(result: StudyResult) -> dict[str, list[ConditionConfig]]:
    """Group CLIPs that differ in seen samples alone, most expensive last, under its name."""
    groups: dict[str, list[ConditionConfig]] = {}
    table = result.config.conditions_of("objectives")
    known = [c for c in table if c.name in result.costs and c.fraction == 1]
    for full in (c for c in known if c.compute_budget == 1):
        kind = (full.captions, full.layer, full.encoder)
        same = [c for c in known if (c.captions, c.layer, c.encoder) == kind]
        budgets = {c.compute_budget: c for c in same}
        if len(budgets) > 1:
            groups[full.name] = [budgets[budget] for budget in sorted(budgets)]
    return groups


def truth_and_detail(results: ResultsTable, noisy: str, terse: str, rich: str) -> Html:
    """Tabulate the effect of truth over noisy captions, and of detail over true ones."""
    rows = []
    for transfer in results.transfers:
        truth = results.difference(terse, noisy, transfer)
        detail = results.difference(rich, terse, transfer)
        metric = results.metric(transfer)
        rows.append(
            [
                format_header(results, transfer),
                *(
                    "{} ({} to {})".format(
                        *(format_difference(v, metric) for v in (c.mean, c.low, c.high))
                    )
                    for c in (truth.change, detail.change)
                ),
            ]
        )
    return table(
        "Gains, paired by seed, with 95 % bootstrap intervals.",
        ["Transfer", f"Truth: {terse} over {noisy}", f"Detail: {rich} over {terse}"],
        rows,
    )


def _interval_point(x: float, values: list[float]) -> IntervalPoint:
    interval = bootstrap(values)
    return IntervalPoint(x=x, low=interval.low, mean=interval.mean, high=interval.high)

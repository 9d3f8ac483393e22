"""A study on one page: tables with error bars beside the paper's, plots, samples, traces."""

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from clipmill.report.attention import attention_charts, attention_from_json
from clipmill.report.html.charts import Spread, spread_chart
from clipmill.report.html.page import (
    Html,
    Section,
    details,
    document,
    paragraph,
    picture,
    section,
    table,
    tag,
    together,
)
from clipmill.report.sections.provenance import environment
from clipmill.report.summary import listed
from clipmill.study import plots, tables
from clipmill.study.config import ConditionConfig, TableName
from clipmill.study.result import StudyResult
from clipmill.study.results_table import Findings
from clipmill.study.scene_captions import Truth
from clipmill.study.statistics import PowerLaw, bootstrap, power_law, trend_p
from clipmill.study.tables import PAPER, heading, plain, signed, verdict

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


_DASHED = paragraph("Dashed: a power law fitted to each.", class_="caveat")


def dose_charts(result: StudyResult) -> Html:
    """Each transfer over the share of wrong captions."""
    dosed = sorted(result.config.table("dose"), key=lambda c: c.dose or 0.0)
    found = result.findings("dose")
    return tag("div", [_dose(found, dosed, t) for t in found.transfers], class_="charts")


def _dose(found: Findings, dosed: list[ConditionConfig], transfer: str) -> Html:
    figures = [found.figures(c.name, transfer) for c in dosed]
    spreads = [_spread(c.dose or 0.0, values) for c, values in zip(dosed, figures, strict=True)]
    note = f"monotone trend: p = {trend_p(figures):.2g}"
    return spread_chart(
        heading(found, transfer), note, {"": spreads}, x_name="wrong captions, percent"
    )


def quality_charts(result: StudyResult) -> Html:
    """Each transfer over how much of what there is to see the captions name."""
    sources = [c for c in result.config.table("sources") if quality_of(result, c) is not None]
    found, charts = result.findings("sources"), []
    for transfer in found.transfers:
        spreads = {
            c.name: [_spread(quality_of(result, c) or 0.0, found.figures(c.name, transfer))]
            for c in sources
        }
        charts.append(
            spread_chart(
                heading(found, transfer), "", spreads, x_name="of what is there, named, percent"
            )
        )
    return tag("div", charts, class_="charts")


def quality_of(result: StudyResult, condition: ConditionConfig) -> float | None:
    """What a condition's captions name, percent; the mean of both kinds where it has both."""
    names = {"real": ["real"], "synthetic": [condition.layer], "both": ["real", condition.layer]}
    found = [result.quality[n] for n in names[condition.captions] if n in result.quality]
    shares = [quality.truth.named for quality in found if quality.truth]
    return sum(shares) / len(shares) if shares else None


def scaling(result: StudyResult) -> Html:
    """Each transfer over the number of pictures, by captions; what quality is worth in pictures."""
    series = dict(_by_captions(result.config.table("scaling")))
    whole = result.num_pairs
    found, first = result.findings("scaling"), next(iter(series))
    charts, rows = [], []
    for transfer in found.transfers:
        title = heading(found, transfer)
        groups = {
            name: [
                _spread(round(whole * c.fraction), found.figures(c.name, transfer))
                for c in conditions
            ]
            for name, conditions in series.items()
        }
        charts.append(_logarithmic_chart(title, groups, x_name="pictures"))
        better = 1 if found.metric(transfer).higher_is_better else -1
        rows += [
            [f"{title}, {name}", *_worth(groups[first][-1], group, better)]
            for name, group in groups.items()
            if name != first and len(group) > 1
        ]
    words = f"Pictures that it needs for what {first} reaches with all {whole:,}, and the factor"
    return together(
        tag("div", charts, class_="charts"),
        _DASHED,
        table(f"{words} saved.", ["Transfer, captions", "Pictures", "Factor"], rows),
    )


def _logarithmic_chart(
    title: str, groups: Mapping[str, list[Spread]], *, x_name: str, unit: float = 1
) -> Html:
    """Power laws through means, on logarithmic axes; places are written in ``unit``.

    Where a figure isn't more than 0, means are joined, and the vertical axis is linear.
    """
    is_positive = all(s.low > 0 for group in groups.values() for s in group)
    laws = {name: _law(group) for name, group in groups.items()}
    fits = {name: [law.at(s.x) for s in groups[name]] for name, law in laws.items() if law}
    return spread_chart(
        title,
        "both axes logarithmic" if is_positive else "on a logarithmic axis",
        {name: [replace(s, x=math.log10(s.x)) for s in g] for name, g in groups.items()},
        x_name=x_name,
        x_labels={math.log10(s.x): _short(s.x / unit) for s in next(iter(groups.values()))},
        fits=fits if is_positive else None,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _law(group: list[Spread]) -> PowerLaw | None:
    return power_law([s.x for s in group], [s.mean for s in group])


def _by_captions(conditions: list[ConditionConfig]) -> Iterator[tuple[str, list[ConditionConfig]]]:
    """Conditions that differ in their share of pictures alone, under the name of the whole."""
    for whole in conditions:
        if whole.fraction == 1:
            same = [
                c
                for c in conditions
                if (c.captions, c.layer, c.encoder) == (whole.captions, whole.layer, whole.encoder)
            ]
            yield whole.name, sorted(same, key=lambda c: c.fraction)


def _worth(end: Spread, own: list[Spread], better: int) -> list[str]:
    """Pictures with which the own law reaches what stands at ``end``, and the factor saved."""
    law = _law(own)
    if law is None or law.exponent * better <= 0:
        return ["more pictures don't help here", ""]
    needed = law.reaches(end.mean)
    return [f"{needed:,.0f}", f"{end.x / needed:.1f}"]


def has_costs(result: StudyResult) -> bool:
    """Whether two kinds of captions were learnt from at several budgets, at a known cost."""
    return len(_by_budget(result)) > 1


def cost_charts(result: StudyResult) -> Html:
    """Each transfer over what pretraining and captions cost; what the same cost buys without."""
    found, charts, rows = result.findings("objectives"), [], []
    series = _by_budget(result)
    first, *others = series
    for transfer in found.transfers:
        title, metric = heading(found, transfer), found.metric(transfer)
        groups = {
            name: [
                _spread(result.costs[c.name].total, found.figures(c.name, transfer))
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
            figures = (plain(bought, metric), plain(end.mean, metric), signed(change, metric))
            rows.append([f"{title}, {name}", f"{end.x / 1e12:.3g}", *figures])
    head = ["Transfer, captions", "TFLOPs", f"{first} at that cost", "Its own", "Better by"]
    note = f"What more training on {first} would give by its power law, for the same cost."
    return together(tag("div", charts, class_="charts"), _DASHED, table(note, head, rows))


def _by_budget(result: StudyResult) -> dict[str, list[ConditionConfig]]:
    """CLIPs that differ in seen samples alone, dearest last, under the name of that one."""
    found: dict[str, list[ConditionConfig]] = {}
    table = result.config.table("objectives")
    known = [c for c in table if c.name in result.costs and c.fraction == 1]
    for whole in (c for c in known if c.budget == 1):
        kind = (whole.captions, whole.layer, whole.encoder)
        same = [c for c in known if (c.captions, c.layer, c.encoder) == kind]
        budgets = {c.budget: c for c in same}
        if len(budgets) > 1:
            found[whole.name] = [budgets[budget] for budget in sorted(budgets)]
    return found


def truth_and_detail(found: Findings, noisy: str, terse: str, rich: str) -> Html:
    """What truth alone adds to noisy captions, and what detail adds to true ones."""
    rows = []
    for transfer in found.transfers:
        truth, detail = found.gain(terse, noisy, transfer), found.gain(rich, terse, transfer)
        metric = found.metric(transfer)
        rows.append(
            [
                heading(found, transfer),
                *(
                    f"{signed(g.change.mean, metric)} "
                    f"({signed(g.change.low, metric)} to {signed(g.change.high, metric)})"
                    for g in (truth, detail)
                ),
            ]
        )
    return table(
        "Gains, paired by seed, with 95 % bootstrap intervals.",
        ["Transfer", f"Truth: {terse} over {noisy}", f"Detail: {rich} over {terse}"],
        rows,
    )


def _spread(x: float, values: list[float]) -> Spread:
    found = bootstrap(values)
    return Spread(x=x, low=found.low, mean=found.mean, high=found.high)

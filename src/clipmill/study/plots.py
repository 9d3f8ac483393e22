"""A study's pictures: caption quality against transfer, dose and response, data scaling."""

import math
from collections.abc import Iterator

import numpy as np

from clipmill.analysis.charts import Spread, spread_chart
from clipmill.analysis.page import Html, paragraph, table, tag, together
from clipmill.study.config import ConditionConfig
from clipmill.study.findings import Findings
from clipmill.study.result import StudyResult
from clipmill.study.statistics import bootstrap, trend_p
from clipmill.study.tables import heading, plain, signed


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
    """Each transfer over the share of pictures about which the captions say nothing false."""
    sources = [c for c in result.config.table("sources") if quality_of(result, c) is not None]
    found, charts = result.findings("sources"), []
    for transfer in found.transfers:
        spreads = {
            c.name: [_spread(quality_of(result, c) or 0.0, found.figures(c.name, transfer))]
            for c in sources
        }
        charts.append(
            spread_chart(
                heading(found, transfer), "", spreads, x_name="pictures truly described, percent"
            )
        )
    return tag("div", charts, class_="charts")


def quality_of(result: StudyResult, condition: ConditionConfig) -> float | None:
    """Truth of a condition's captions, percent; the mean of both kinds where it has both."""
    names = {"real": ["real"], "synthetic": [condition.layer], "both": ["real", condition.layer]}
    shares = [
        result.quality[n].true_share for n in names[condition.captions] if n in result.quality
    ]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def scaling(result: StudyResult) -> Html:
    """Each transfer over the number of pictures, by captions; what quality is worth in pictures."""
    series = dict(_by_captions(result.config.table("scaling")))
    whole = result.num_pairs
    found, first = result.findings("scaling"), next(iter(series))
    charts, rows = [], []
    for transfer in found.transfers:
        spreads = {
            name: [
                _spread(math.log10(whole * c.fraction), found.figures(c.name, transfer))
                for c in conditions
            ]
            for name, conditions in series.items()
        }
        labels = {s.x: f"{10**s.x:,.0f}" for group in spreads.values() for s in group}
        note = "pictures on a logarithmic axis"
        charts.append(
            spread_chart(
                heading(found, transfer), note, spreads, x_name="pictures", x_labels=labels
            )
        )
        better = 1 if found.metric(transfer).higher_is_better else -1
        rows += [
            [f"{heading(found, transfer)}, {name}", *_worth(spreads[first], group, better)]
            for name, group in spreads.items()
            if name != first and len(group) > 1
        ]
    words = f"Pictures that it needs for what {first} reaches with all {whole:,}, and the factor"
    return together(
        tag("div", charts, class_="charts"),
        paragraph(
            "A straight line is fitted to each over the logarithm of the number of pictures.",
            class_="caveat",
        ),
        table(f"{words} saved.", ["Transfer, captions", "Pictures", "Factor"], rows),
    )


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


def _worth(first: list[Spread], own: list[Spread], better: int) -> list[str]:
    """Pictures on the own line at which the first line's end is reached, and the factor saved."""
    slope, base = np.polyfit([s.x for s in own], [s.mean for s in own], 1)
    if slope * better <= 0:
        return ["more pictures don't help here", ""]
    needed = (first[-1].mean - base) / slope
    return [f"{10**needed:,.0f}", f"{10 ** (first[-1].x - needed):.1f}"]


def has_costs(result: StudyResult) -> bool:
    """Whether two kinds of captions were learnt from at several budgets, at a known cost."""
    return len(_by_budget(result)) > 1


def cost_charts(result: StudyResult) -> Html:
    """Each transfer over what pretraining and captions cost; what the same cost buys without."""
    found, charts, rows = result.findings("objectives"), [], []
    series = _by_budget(result)
    first, *others = series
    for transfer in found.transfers:
        spreads = {
            name: [
                _spread(math.log10(result.costs[c.name].total), found.figures(c.name, transfer))
                for c in conditions
            ]
            for name, conditions in series.items()
        }
        labels = {s.x: f"{10**s.x / 1e12:.3g}" for s in spreads[first]}
        charts.append(
            spread_chart(
                heading(found, transfer),
                "on a logarithmic axis",
                spreads,
                x_name="TFLOPs, captions included",
                x_labels=labels,
            )
        )
        metric = found.metric(transfer)
        line = np.polyfit([s.x for s in spreads[first]], [s.mean for s in spreads[first]], 1)
        for name in others:
            end = spreads[name][-1]
            bought = float(np.polyval(line, end.x))
            change = metric.gain(end.mean, bought)
            figures = (plain(bought, metric), plain(end.mean, metric), signed(change, metric))
            rows.append(
                [f"{heading(found, transfer)}, {name}", f"{10**end.x / 1e12:.3g}", *figures]
            )
    head = ["Transfer, captions", "TFLOPs", f"{first} at that cost", "Its own", "Better by"]
    note = f"What more training on {first} would give, on a line fitted to it, for the same cost."
    return together(tag("div", charts, class_="charts"), table(note, head, rows))


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

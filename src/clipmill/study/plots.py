"""A study's pictures: caption quality against transfer, dose and response, data scaling."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from clipmill.analysis.charts import Spread, spread_chart
from clipmill.analysis.page import Html, paragraph, table, tag, together
from clipmill.study.config import ConditionConfig
from clipmill.study.findings import Findings
from clipmill.study.result import StudyResult
from clipmill.study.statistics import PowerLaw, bootstrap, power_law, trend_p
from clipmill.study.tables import heading, plain, signed

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
            change = metric.gain(end.mean, bought)
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

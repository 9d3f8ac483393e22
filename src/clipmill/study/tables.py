"""A study's tables: conditions against the first of each, and the paper's figures in grey."""

from collections.abc import Sequence

from clipmill.analysis.figures import figure_named
from clipmill.analysis.page import Html, table, tag, together
from clipmill.study.findings import Findings
from clipmill.study.paper import PaperRow
from clipmill.study.statistics import Interval, bootstrap
from clipmill.tasks.contract import Metric

STYLE = """
table :is(td, th):first-child { min-width: 9em; }
.scroll + .scroll { margin-top: 2rem; }
:is(td, th) small { display: block; color: var(--soft); white-space: nowrap; }
th small { font-weight: 400; white-space: normal; }
td.paper, th:has(.paper) { color: var(--soft); font-weight: 400; }
td.sure small:first-of-type { color: var(--good); font-weight: 600; }
td.sure.lost small:first-of-type { color: var(--bad); }
"""


def comparison(found: Findings, paper: Sequence[PaperRow] = ()) -> Html:
    """Tables of all conditions: encoders fine-tuned as a whole beside the paper's, then frozen."""
    whole = [t for t in found.transfers if not found.is_frozen(t)]
    frozen = [t for t in found.transfers if found.is_frozen(t)]
    tables = [_comparison(found, whole, "Fine-tuned as a whole.", paper)] if whole else []
    if frozen:
        tables.append(_comparison(found, frozen, "Heads on frozen encoders.", ()))
    return together(*tables)


def _comparison(
    found: Findings, transfers: Sequence[str], kind: str, paper: Sequence[PaperRow]
) -> Html:
    body = [[_name(found, c), *(_cell(found, c, t) for t in transfers)] for c in found.conditions]
    named = ", or than what stands below its name" if found.over else ""
    better = f"how much better than {found.conditions[0]}{named}"
    seeds = len(found.seeds)
    note = f"{kind} One seed, which can't tell an effect from noise; below, {better}."
    if seeds > 1:
        note = (
            f"{kind} Mean over {seeds} seeds; below it, {better}, paired by seed, and at the end "
            "the mean's own bounds (95 % bootstrap intervals); p is a sign-flip test's, which "
            f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}. Coloured where the interval "
            "leaves 0 out."
        )
    tasks = {found.transfers[t].task for t in transfers}
    grey = [_paper_row(found, transfers, row) for row in paper if tasks & row.figures.keys()]
    if grey:
        note += " In grey, the paper's encoders, on photographs."
    head = ["Encoder from", *(heading(found, t) for t in transfers)]
    return table(note, head, [*body, *grey])


def heading(found: Findings, transfer: str) -> str:
    """A transfer with its metric and unit."""
    metric = found.metric(transfer)
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{transfer}: {figure_named(metric.name).title}{unit}"


def plain(value: float, metric: Metric) -> str:
    """A figure of the metric without its unit: percents to a tenth, metres to a millimetre."""
    return f"{value:.1f}" if metric.unit == "%" else f"{value:.3f}"


def signed(value: float, metric: Metric) -> str:
    """A difference, likewise."""
    return ("+" if value >= 0 else "-") + plain(abs(value), metric)


def _name(found: Findings, condition: str) -> str:
    """A condition, and what it is held against where that isn't the table's first."""
    over = found.reference(condition)
    if over in (condition, found.conditions[0]):
        return condition
    return together(tag("span", condition), tag("small", f"against {over}"))


def _cell(found: Findings, condition: str, transfer: str) -> Html:
    is_reference = found.reference(condition) == condition
    return (_figure if is_reference else _changed)(found, condition, transfer)


def _figure(found: Findings, condition: str, transfer: str) -> Html:
    own, metric = bootstrap(found.figures(condition, transfer)), found.metric(transfer)
    return tag("td", plain(own.mean, metric), *_bounds(found, own, metric))


def _changed(found: Findings, condition: str, transfer: str) -> Html:
    gain = found.gain(condition, found.reference(condition), transfer)
    change = gain.change
    own = bootstrap(found.figures(condition, transfer))
    metric = found.metric(transfer)
    mean, low, high = (signed(v, metric) for v in (change.mean, change.low, change.high))
    has_bounds = len(found.seeds) > 1
    words = f"{mean} ({low} to {high})" if has_bounds else mean
    test = f"{gain.percent:+.1f} %" + (f", p = {gain.p:.3g}" if has_bounds else "")
    kind = "sure" if change.mean > 0 else "sure lost"
    return tag(
        "td",
        plain(own.mean, metric),
        tag("small", words),
        tag("small", test),
        *_bounds(found, own, metric),
        class_=kind if gain.is_sure else "",
    )


def _bounds(found: Findings, own: Interval, metric: Metric) -> list[Html]:
    """The bounds of a mean; none of a single seed's."""
    words = f"{plain(own.low, metric)} to {plain(own.high, metric)}"
    return [tag("small", words)] if len(found.seeds) > 1 else []


def _paper_row(found: Findings, transfers: Sequence[str], row: PaperRow) -> list[str]:
    figures = [row.figures.get(found.transfers[transfer].task) for transfer in transfers]
    cells = [tag("td", "" if f is None else f"{f:g}", class_="paper") for f in figures]
    return [tag("span", row.name, class_="paper"), *cells]

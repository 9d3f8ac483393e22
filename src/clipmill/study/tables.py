"""A study's tables: conditions against the first of each, and the paper's figures in grey."""

from collections.abc import Sequence

from clipmill.analysis.page import Html, table, tag
from clipmill.study.findings import Findings
from clipmill.study.paper import PaperRow
from clipmill.study.statistics import bootstrap
from clipmill.tasks.contract import Metric

STYLE = """
td small { display: block; color: var(--soft); white-space: nowrap; }
td.paper, th:has(.paper) { color: var(--soft); font-weight: 400; }
td.sure small:first-of-type { color: var(--good); font-weight: 600; }
td.sure.lost small:first-of-type { color: var(--bad); }
"""


def comparison(found: Findings, paper: Sequence[PaperRow] = ()) -> Html:
    """A table of all conditions, and of what the paper found."""
    body = [[c, *(_cell(found, c, t) for t in found.transfers)] for c in found.conditions]
    seeds, named = len(found.seeds), ", or than what is named" if found.over else ""
    note = (
        f"Mean over {seeds} seed{'s' if seeds != 1 else ''} (95 % bootstrap interval). Below it, "
        f"how much better than {found.conditions[0]}{named}, paired by seed; p is a sign-flip "
        "test's, which "
        f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}. Coloured where the interval leaves "
        "0 out."
    )
    if paper:
        note += " In grey, the paper's encoders, on photographs."
    head = ["Encoder from", *(heading(found, t) for t in found.transfers)]
    tasks = {c.task for transfer, c in found.transfers.items() if not found.is_frozen(transfer)}
    grey = [_paper_row(found, row) for row in paper if tasks & row.figures.keys()]
    return table(note, head, [*body, *grey])


def heading(found: Findings, transfer: str) -> str:
    """A transfer with its metric and unit."""
    metric = found.metric(transfer)
    return f"{transfer}: {metric.name} {metric.unit}".strip()


def plain(value: float, metric: Metric) -> str:
    """A figure of the metric without its unit: percents to a tenth, metres to a millimetre."""
    return f"{value:.1f}" if metric.unit == "%" else f"{value:.3f}"


def signed(value: float, metric: Metric) -> str:
    """A difference, likewise."""
    return ("+" if value >= 0 else "-") + plain(abs(value), metric)


def _cell(found: Findings, condition: str, transfer: str) -> Html:
    is_reference = found.reference(condition) == condition
    return (_figure if is_reference else _changed)(found, condition, transfer)


def _figure(found: Findings, condition: str, transfer: str) -> Html:
    own, metric = bootstrap(found.figures(condition, transfer)), found.metric(transfer)
    bounds = f"{plain(own.low, metric)} to {plain(own.high, metric)}"
    return tag("td", plain(own.mean, metric), tag("small", bounds))


def _changed(found: Findings, condition: str, transfer: str) -> Html:
    over = found.reference(condition)
    gain = found.gain(condition, over, transfer)
    change = gain.change
    own = bootstrap(found.figures(condition, transfer))
    metric = found.metric(transfer)
    bounds = f"{plain(own.low, metric)} to {plain(own.high, metric)}"
    mean, low, high = (signed(v, metric) for v in (change.mean, change.low, change.high))
    words = f"{mean} ({low} to {high})"
    if over != found.conditions[0]:
        words += f" over {over}"
    kind = "sure" if change.mean > 0 else "sure lost"
    return tag(
        "td",
        plain(own.mean, metric),
        tag("small", words),
        tag("small", f"{gain.percent:+.1f} %, p = {gain.p:.3g}; {bounds}"),
        class_=kind if gain.is_sure else "",
    )


def _paper_row(found: Findings, row: PaperRow) -> list[str]:
    """The paper's figures stand where an encoder is fine-tuned as a whole."""
    cells = []
    for transfer, asked in found.transfers.items():
        figure = None if found.is_frozen(transfer) else row.figures.get(asked.task)
        cells.append(tag("td", "" if figure is None else f"{figure:g}", class_="paper"))
    return [tag("span", row.name, class_="paper"), *cells]

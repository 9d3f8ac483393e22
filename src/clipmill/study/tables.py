"""A study's tables: conditions against the first of each, and the paper's figures in grey."""

from clipmill.analysis.page import Html, table, tag
from clipmill.study.config import TableName
from clipmill.study.paper import PAPER, PaperRow
from clipmill.study.result import StudyResult
from clipmill.study.statistics import bootstrap
from clipmill.tasks.contract import Metric

STYLE = """
td small { display: block; color: var(--soft); white-space: nowrap; }
td.paper, td.paper + td { color: var(--soft); }
td.sure small:first-of-type { color: var(--good); font-weight: 600; }
td.sure.lost small:first-of-type { color: var(--bad); }
"""


def comparison(result: StudyResult, name: TableName) -> Html:
    """A table of the conditions that are compared there, and the paper's of the same kind."""
    first, *others = result.config.table(name)
    transfers = list(result.config.transfers)
    body = [[first.name, *(_figure(result, first.name, t) for t in transfers)]]
    body += [
        [c.name, *(_changed(result, c.name, first.name, t) for t in transfers)] for c in others
    ]
    seeds = len(result.config.seeds)
    note = (
        f"Mean over {seeds} seed{'s' if seeds != 1 else ''} (95 % bootstrap interval). Below it, "
        f"how much better than {first.name}, paired by seed; p is a sign-flip test's, which "
        f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}. Coloured where the interval leaves "
        "0 out. In grey, the paper's ViT-B/16 on photographs."
    )
    head = ["Encoder from", *(heading(result, t) for t in transfers)]
    grey = [_paper_row(result, row) for row in PAPER.get(name, ())]
    return table(note, head, [*body, *grey])


def heading(result: StudyResult, transfer: str) -> str:
    """A transfer with its metric and unit."""
    metric = result.metric(transfer)
    return f"{transfer}: {metric.name} {metric.unit}".strip()


def plain(value: float, metric: Metric) -> str:
    """A figure of the metric without its unit: percents to a tenth, metres to a millimetre."""
    return f"{value:.1f}" if metric.unit == "%" else f"{value:.3f}"


def signed(value: float, metric: Metric) -> str:
    """A difference, likewise."""
    return ("+" if value >= 0 else "-") + plain(abs(value), metric)


def _figure(result: StudyResult, condition: str, transfer: str) -> Html:
    found = bootstrap(result.figures(condition, transfer))
    metric = result.metric(transfer)
    bounds = f"{plain(found.low, metric)} to {plain(found.high, metric)}"
    return tag("td", plain(found.mean, metric), tag("small", bounds))


def _changed(result: StudyResult, condition: str, over: str, transfer: str) -> Html:
    gain = result.gain(condition, over, transfer)
    change = gain.change
    own = bootstrap(result.figures(condition, transfer))
    metric = result.metric(transfer)
    bounds = f"{plain(own.low, metric)} to {plain(own.high, metric)}"
    mean, low, high = (signed(v, metric) for v in (change.mean, change.low, change.high))
    words = f"{mean} ({low} to {high})"
    kind = "sure" if change.mean > 0 else "sure lost"
    return tag(
        "td",
        plain(own.mean, metric),
        tag("small", words),
        tag("small", f"{gain.percent:+.1f} %, p = {gain.p:.3g}; {bounds}"),
        class_=kind if gain.is_sure else "",
    )


def _paper_row(result: StudyResult, row: PaperRow) -> list[str]:
    """The paper's figures stand where an encoder is fine-tuned as a whole."""
    cells = []
    for asked in result.config.transfers.values():
        found = None if asked.model.to_json()["is_frozen"] else row.figures.get(asked.task)
        cells.append(tag("td", "" if found is None else f"{found:g}", class_="paper"))
    return [tag("span", row.name, class_="soft"), *cells]

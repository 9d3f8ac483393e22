"""A study's tables: conditions against the first of each, and the paper's figures in grey."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipmill.report.format import figure_named
from clipmill.report.html.page import Html, table, tag, together
from clipmill.study.config import TableName
from clipmill.study.results_table import Findings
from clipmill.study.statistics import Interval, bootstrap
from clipmill.tasks.base import Metric

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


_FEWEST_SEEDS = 5


def verdict(found: Findings) -> list[str]:
    """A sentence for each condition: where its interval over its reference leaves 0 out."""
    if len(found.seeds) == 1:
        return ["One seed, which can't tell an effect from noise."]
    sentences = []
    for condition in found.conditions:
        over = found.reference(condition)
        if over == condition:
            continue
        better: list[str] = []
        worse: list[str] = []
        for transfer in found.transfers:
            gain = found.gain(condition, over, transfer)
            if gain.is_sure:
                metric = found.metric(transfer)
                unit = "points" if metric.unit == "%" else metric.unit
                figure = f"by {plain(abs(gain.change.mean), metric)} {unit}".strip()
                words = f"{transfer} ({figure})"
                (better if gain.change.mean > 0 else worse).append(words)
        said = [f"better than {over} at {_and(better)}"] if better else []
        said += [f"worse{'' if better else f' than {over}'} at {_and(worse)}"] if worse else []
        if said:
            sentences.append(f"{condition} is {' and '.join(said)}.")
    if not sentences:
        return [f"No condition differs from {found.conditions[0]} by more than its interval."]
    if len(found.seeds) < _FEWEST_SEEDS:
        sentences.append(f"{len(found.seeds)} seeds are a hint: no test is sure of so few.")
    return sentences


def markdown(found: Findings) -> str:
    """All conditions as a Markdown table: means and 95 % intervals."""
    head = ["encoder from", *(heading(found, t) for t in found.transfers)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _cells(found)]
    return "\n".join(lines) + "\n"


def latex(found: Findings) -> str:
    """The same for a paper; needs the package booktabs."""
    transfers = found.transfers
    head = ["Encoder from", *(heading(found, t) for t in transfers)]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(transfers)}}}", r"\toprule"]
    lines += [_latex_row(head), r"\midrule"]
    lines += [_latex_row(cells) for cells in _cells(found)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def rows(found: Findings) -> list[dict[str, str | int | float]]:
    """Every figure of every run: what a CSV holds."""
    return [
        {
            "condition": run.condition,
            "seed": run.seed,
            "transfer": transfer,
            "metric": name,
            "value": value,
            "encoder": run.encoder,
            "evaluation": run.evaluations[transfer],
        }
        for run in found.runs
        for transfer, metrics in run.metrics.items()
        for name, value in metrics.items()
    ]


def _cells(found: Findings) -> list[list[str]]:
    return [
        [c, *(_cell(found, c, transfer) for transfer in found.transfers)] for c in found.conditions
    ]


def _cell(found: Findings, condition: str, transfer: str) -> str:
    own, metric = bootstrap(found.figures(condition, transfer)), found.metric(transfer)
    low, high = plain(own.low, metric), plain(own.high, metric)
    bounds = f" [{low}, {high}]" if len(found.seeds) > 1 else ""
    return plain(own.mean, metric) + bounds


def _latex_row(cells: list[str]) -> str:
    escaped = [cell.replace("%", r"\%").replace("&", r"\&").replace("_", r"\_") for cell in cells]
    return " & ".join(escaped) + r" \\"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """An encoder of the paper."""

    name: str
    """Data and captions, or method and budget."""
    figures: dict[str, float]
    """By task, in its metric's unit: box mAP of detection, mIoU, RMSE in metres, top-1."""


def _dense(box: float, miou: float, rmse: float | None = None) -> dict[str, float]:
    found = {"detection": box, "segmentation": miou}
    return found if rmse is None else {**found, "depth": rmse}


PAPER: dict[TableName, tuple[PaperRow, ...]] = {
    "sources": (
        PaperRow(name="DataComp-12M, real (G)", figures=_dense(42.4, 43.9)),
        PaperRow(name="DataComp-12M, CoCa (G+S)", figures=_dense(44.6, 47.8)),
        PaperRow(name="CC-12M, real (G)", figures=_dense(43.8, 45.5)),
        PaperRow(name="CC-12M, LLM rewrites (S)", figures=_dense(43.9, 46.1)),
        PaperRow(name="WIT-12M, real (G)", figures=_dense(41.4, 42.5)),
        PaperRow(name="WIT-12M, LLaVA and Vicuna (G+S)", figures=_dense(42.7, 45.6)),
    ),
    "objectives": (
        PaperRow(name="MAE, 2.05 B seen", figures=_dense(54.0, 48.1, 0.383)),
        PaperRow(name="CLIP, DataComp, 2.05 B seen", figures=_dense(52.1, 49.1, 0.398)),
        PaperRow(name="CLIP, DataCompDR, 2.05 B seen", figures=_dense(53.1, 51.7, 0.366)),
        PaperRow(name="MAE, 5 B seen", figures=_dense(53.8, 47.2, 0.348)),
        PaperRow(name="CLIP, DataComp, 5 B seen", figures=_dense(53.3, 50.7, 0.374)),
        PaperRow(name="CLIP, DataCompDR, 5 B seen", figures=_dense(54.1, 52.5, 0.351)),
        PaperRow(name="CLIP, DataComp, 12.8 B seen", figures=_dense(53.9, 52.5, 0.358)),
        PaperRow(name="CLIP, DataCompDR, 12.8 B seen", figures=_dense(54.6, 53.9, 0.339)),
    ),
    "mobile": tuple(
        PaperRow(name=f"{name}, {how}", figures=_dense(box, miou))
        for name, rows in (
            ("MCi0", (("labels", 41.8, 44.8), ("CLIP, DataCompDR, distilled", 44.2, 48.1))),
            ("MCi1", (("labels", 45.2, 47.7), ("CLIP, DataCompDR, distilled", 47.7, 49.8))),
            ("MCi2", (("labels", 46.6, 48.9), ("CLIP, DataCompDR, distilled", 49.5, 52.2))),
        )
        for how, box, miou in rows
    ),
}
"""ViT-B/16 and mobile encoders; with Mask R-CNN 1x, but the objectives with Cascade 3x."""

"""Tables of a study as HTML, Markdown, LaTeX and rows, and its results in sentences.

The paper's own values (CLIP-QC's tables) stand in gray next to the study's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clipmill.report.format import join_words, metric_format
from clipmill.report.html.page import Html, concat, table, tag
from clipmill.study.config import TableName
from clipmill.study.results_table import ResultsTable
from clipmill.study.statistics import Interval, bootstrap
from clipmill.tasks.base import Metric

_MIN_SEEDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """Results of an encoder of the paper."""

    name: str
    """Data and captions, or method and budget."""
    values: dict[str, float]
    """Metric by task, in its unit: box mAP of detection, mIoU, RMSE in metres, top-1."""


def _dense(box: float, miou: float, rmse: float | None = None) -> dict[str, float]:
    values = {"detection": box, "segmentation": miou}
    return values if rmse is None else {**values, "depth": rmse}


PAPER: dict[TableName, tuple[PaperRow, ...]] = {
    "sources": (
        PaperRow(name="DataComp-12M, real (G)", values=_dense(42.4, 43.9)),
        PaperRow(name="DataComp-12M, CoCa (G+S)", values=_dense(44.6, 47.8)),
        PaperRow(name="CC-12M, real (G)", values=_dense(43.8, 45.5)),
        PaperRow(name="CC-12M, LLM rewrites (S)", values=_dense(43.9, 46.1)),
        PaperRow(name="WIT-12M, real (G)", values=_dense(41.4, 42.5)),
        PaperRow(name="WIT-12M, LLaVA and Vicuna (G+S)", values=_dense(42.7, 45.6)),
    ),
    "objectives": (
        PaperRow(name="MAE, 2.05 B seen", values=_dense(54.0, 48.1, 0.383)),
        PaperRow(name="CLIP, DataComp, 2.05 B seen", values=_dense(52.1, 49.1, 0.398)),
        PaperRow(name="CLIP, DataCompDR, 2.05 B seen", values=_dense(53.1, 51.7, 0.366)),
        PaperRow(name="MAE, 5 B seen", values=_dense(53.8, 47.2, 0.348)),
        PaperRow(name="CLIP, DataComp, 5 B seen", values=_dense(53.3, 50.7, 0.374)),
        PaperRow(name="CLIP, DataCompDR, 5 B seen", values=_dense(54.1, 52.5, 0.351)),
        PaperRow(name="CLIP, DataComp, 12.8 B seen", values=_dense(53.9, 52.5, 0.358)),
        PaperRow(name="CLIP, DataCompDR, 12.8 B seen", values=_dense(54.6, 53.9, 0.339)),
    ),
    "mobile": tuple(
        PaperRow(name=f"{name}, {how}", values=_dense(box, miou))
        for name, rows in (
            ("MCi0", (("labels", 41.8, 44.8), ("CLIP, DataCompDR, distilled", 44.2, 48.1))),
            ("MCi1", (("labels", 45.2, 47.7), ("CLIP, DataCompDR, distilled", 47.7, 49.8))),
            ("MCi2", (("labels", 46.6, 48.9), ("CLIP, DataCompDR, distilled", 49.5, 52.2))),
        )
        for how, box, miou in rows
    ),
}
"""Rows by table: ViT-B/16 and mobile encoders, Mask R-CNN 1x; ``objectives`` has Cascade 3x."""


def comparison(results: ResultsTable, paper: Sequence[PaperRow] = ()) -> Html:
    """Return HTML tables of all conditions: fine-tuned with the paper's values, then frozen."""
    finetuned = [t for t in results.transfers if not results.is_frozen(t)]
    frozen = [t for t in results.transfers if results.is_frozen(t)]
    tables = []
    if finetuned:
        tables.append(_comparison(results, finetuned, "Fine-tuned as a whole.", paper))
    if frozen:
        tables.append(_comparison(results, frozen, "Heads on frozen encoders.", ()))
    return concat(*tables)


def summary_sentences(results: ResultsTable) -> list[str]:
    """Return a sentence for each condition whose interval over its baseline excludes 0."""
    if len(results.seeds) == 1:
        return ["One seed, which can't tell an effect from noise."]
    sentences = []
    for condition in results.conditions:
        baseline = results.baseline(condition)
        if baseline == condition:
            continue
        better: list[str] = []
        worse: list[str] = []
        for transfer in results.transfers:
            difference = results.difference(condition, baseline, transfer)
            if difference.is_significant:
                metric = results.metric(transfer)
                unit = "points" if metric.unit == "%" else metric.unit
                mean = difference.change.mean
                amount = f"by {format_value(abs(mean), metric)} {unit}".strip()
                (better if mean > 0 else worse).append(f"{transfer} ({amount})")
        clauses = [f"better than {baseline} at {join_words(better)}"] if better else []
        than = "" if better else f" than {baseline}"
        clauses += [f"worse{than} at {join_words(worse)}"] if worse else []
        if clauses:
            sentences.append(f"{condition} is {' and '.join(clauses)}.")
    if not sentences:
        return [f"No condition differs from {results.conditions[0]} by more than its interval."]
    if len(results.seeds) < _MIN_SEEDS:
        sentences.append(f"{len(results.seeds)} seeds are a hint: no test is sure of so few.")
    return sentences


def markdown(results: ResultsTable) -> str:
    """Return all conditions as a Markdown table: means and 95 % intervals."""
    head = ["encoder from", *(format_header(results, t) for t in results.transfers)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _text_cells(results)]
    return "\n".join(lines) + "\n"


def latex(results: ResultsTable) -> str:
    """Return all conditions as a LaTeX table, which needs the package booktabs."""
    transfers = results.transfers
    head = ["Encoder from", *(format_header(results, t) for t in transfers)]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(transfers)}}}", r"\toprule"]
    lines += [_latex_row(head), r"\midrule"]
    lines += [_latex_row(cells) for cells in _text_cells(results)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_rows(results: ResultsTable) -> list[dict[str, str | int | float]]:
    """Return every metric of every run, a row each."""
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
        for run in results.runs
        for transfer, metrics in run.metrics.items()
        for name, value in metrics.items()
    ]


def format_header(results: ResultsTable, transfer: str) -> str:
    """Format a transfer with its metric and unit."""
    metric = results.metric(transfer)
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{transfer}: {metric_format(metric.name).title}{unit}"


def format_value(value: float, metric: Metric) -> str:
    """Format a value without its unit: percents to a tenth, metres to a millimetre."""
    return f"{value:.1f}" if metric.unit == "%" else f"{value:.3f}"


def format_difference(value: float, metric: Metric) -> str:
    """Format a signed difference without its unit."""
    return ("+" if value >= 0 else "-") + format_value(abs(value), metric)


def _comparison(
    results: ResultsTable, transfers: Sequence[str], kind: str, paper: Sequence[PaperRow]
) -> Html:
    body = [
        [_name(results, c), *(_cell(results, c, t) for t in transfers)] for c in results.conditions
    ]
    named = ", or than what stands below its name" if results.baselines else ""
    better = f"how much better than {results.conditions[0]}{named}"
    seeds = len(results.seeds)
    note = f"{kind} One seed, which can't tell an effect from noise; below, {better}."
    if seeds > 1:
        note = (
            f"{kind} Mean over {seeds} seeds; below it, {better}, paired by seed, and at the end "
            "the mean's own bounds (95 % bootstrap intervals); p is a sign-flip test's, which "
            f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}. Coloured where the interval "
            "leaves 0 out."
        )
    tasks = {results.transfers[t].task for t in transfers}
    gray = [_paper_row(results, transfers, row) for row in paper if tasks & row.values.keys()]
    if gray:
        note += " In grey, the paper's encoders, on photographs."
    head = ["Encoder from", *(format_header(results, t) for t in transfers)]
    return table(note, head, [*body, *gray])


def _name(results: ResultsTable, condition: str) -> str:
    """Format a condition, with its baseline where that isn't the table's first."""
    baseline = results.baseline(condition)
    if baseline in (condition, results.conditions[0]):
        return condition
    return concat(tag("span", condition), tag("small", f"against {baseline}"))


def _cell(results: ResultsTable, condition: str, transfer: str) -> Html:
    is_baseline = results.baseline(condition) == condition
    return (_value_cell if is_baseline else _difference_cell)(results, condition, transfer)


def _value_cell(results: ResultsTable, condition: str, transfer: str) -> Html:
    own, metric = bootstrap(results.values(condition, transfer)), results.metric(transfer)
    return tag("td", format_value(own.mean, metric), *_bounds(results, own, metric))


def _difference_cell(results: ResultsTable, condition: str, transfer: str) -> Html:
    difference = results.difference(condition, results.baseline(condition), transfer)
    change = difference.change
    own = bootstrap(results.values(condition, transfer))
    metric = results.metric(transfer)
    mean, low, high = (format_difference(v, metric) for v in (change.mean, change.low, change.high))
    has_bounds = len(results.seeds) > 1
    interval = f"{mean} ({low} to {high})" if has_bounds else mean
    test = f"{difference.percent:+.1f} %" + (f", p = {difference.p:.3g}" if has_bounds else "")
    class_ = "sure" if change.mean > 0 else "sure lost"
    return tag(
        "td",
        format_value(own.mean, metric),
        tag("small", interval),
        tag("small", test),
        *_bounds(results, own, metric),
        class_=class_ if difference.is_significant else "",
    )


def _bounds(results: ResultsTable, own: Interval, metric: Metric) -> list[Html]:
    """Format the bounds of a mean; none with a single seed."""
    bounds = f"{format_value(own.low, metric)} to {format_value(own.high, metric)}"
    return [tag("small", bounds)] if len(results.seeds) > 1 else []


def _paper_row(results: ResultsTable, transfers: Sequence[str], row: PaperRow) -> list[str]:
    values = [row.values.get(results.transfers[transfer].task) for transfer in transfers]
    cells = [tag("td", "" if v is None else f"{v:g}", class_="paper") for v in values]
    return [tag("span", row.name, class_="paper"), *cells]


def _text_cells(results: ResultsTable) -> list[list[str]]:
    return [
        [c, *(_text_cell(results, c, transfer) for transfer in results.transfers)]
        for c in results.conditions
    ]


def _text_cell(results: ResultsTable, condition: str, transfer: str) -> str:
    own, metric = bootstrap(results.values(condition, transfer)), results.metric(transfer)
    low, high = format_value(own.low, metric), format_value(own.high, metric)
    bounds = f" [{low}, {high}]" if len(results.seeds) > 1 else ""
    return format_value(own.mean, metric) + bounds


def _latex_row(cells: list[str]) -> str:
    escaped = [cell.replace("%", r"\%").replace("&", r"\&").replace("_", r"\_") for cell in cells]
    return " & ".join(escaped) + r" \\"

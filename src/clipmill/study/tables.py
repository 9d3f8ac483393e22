"""Tables of a study: evaluations over seeds, their statistics, and HTML, Markdown, LaTeX and rows.

The paper's own values (CLIP-QC's tables) stand in gray next to the study's.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.report.format import join_words, metric_format
from clipmill.report.html.page import Html, concat, table, tag
from clipmill.study.config import TableName
from clipmill.tasks.base import Metric
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task

_NUM_RESAMPLES = 10_000
_MAX_EXACT = 16
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    """Mean of the values."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Improvement of one condition over another, over seeds."""

    change: Interval
    """Mean difference, positive for an improvement."""
    percent: float
    """Mean difference, percent of the other's mean."""
    p: float
    """p-value of a sign-flip test."""
    num_seeds: int
    """Number of pairs."""

    @property
    def is_significant(self) -> bool:
        """True if the interval excludes 0; never with one seed."""
        return self.num_seeds > 1 and not self.change.low <= 0 <= self.change.high


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """Function ``factor * x ** exponent``, a straight line between logarithms."""

    exponent: float
    """Slope of that line."""
    factor: float
    """Value at 1."""

    def at(self, x: float) -> float:
        """Return the value at ``x``."""
        return float(self.factor * x**self.exponent)

    def inverse(self, value: float) -> float:
        """Return the ``x`` of a value; the exponent isn't 0."""
        return float((value / self.factor) ** (1 / self.exponent))


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit by least squares between logarithms; None for a single ``x``, or if any ``y`` <= 0."""
    if len(set(x)) < 2 or min(y) <= 0:
        return None
    exponent, log_factor = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(exponent=float(exponent), factor=float(np.exp(log_factor)))


def paired_difference(improvements: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Summarize improvements, one a seed, over ``baseline``."""
    change = bootstrap(improvements)
    return PairedDifference(
        change=change,
        percent=100 * change.mean / float(np.mean(baseline)),
        p=sign_flip_pvalue(improvements),
        num_seeds=len(improvements),
    )


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Compute the mean's percentile bootstrap interval (Efron 1979), too narrow for few values."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(_NUM_RESAMPLES, len(array)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def sign_flip_pvalue(differences: Sequence[float], *, seed: int = 0) -> float:
    """Compute the two-sided p-value of differences symmetric about 0 (Fisher 1935).

    All 2^n sign patterns are counted up to 16 differences, else 10,000 random ones. With n
    differences it can't be below 2 / 2^n.
    """
    array = np.asarray(differences, dtype=np.float64)
    n = len(array)
    if n <= _MAX_EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(_NUM_RESAMPLES, n))
    sums = np.abs(signs @ array)
    # Rounding must not make the observed pattern rarer than itself.
    return float((sums >= abs(array.sum()) * (1 - 1e-12)).mean())


def trend_pvalue(values: Sequence[Sequence[float]], *, seed: int = 0) -> float:
    """Compute the two-sided p-value of a monotone trend (Page's L, by permutation within seeds).

    ``values[i][s]`` is the metric at level ``i``, in ascending order, with seed ``s``.
    """
    array = np.asarray(values, dtype=np.float64)
    ranks = array.argsort(axis=0).argsort(axis=0).astype(np.float64)
    levels = np.arange(len(array)) - (len(array) - 1) / 2
    observed = abs(levels @ ranks.sum(axis=1))
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.broadcast_to(ranks, (_NUM_RESAMPLES, *ranks.shape)), axis=1)
    statistics = np.abs(np.einsum("d,rds->r", levels, shuffled))
    # The observed order is one of those possible.
    return float(((statistics >= observed - 1e-9).sum() + 1) / (_NUM_RESAMPLES + 1))


_TASKS = ("segmentation", "depth", "detection", "classification")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One condition with one seed."""

    condition: str
    """Name of the condition."""
    seed: int
    """Seed of weights and order."""
    encoder: str
    """URI of the encoder."""
    evaluations: dict[str, str]
    """URI of the evaluation by each transfer's name."""
    metrics: dict[str, dict[str, float]]
    """All metrics by each transfer's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    """Runs of several conditions with the same transfers and seeds."""

    conditions: tuple[str, ...]
    """Names; the first is the baseline of the others."""
    transfers: Mapping[str, FinetuneConfig]
    """Transfer tasks by name."""
    seeds: tuple[int, ...]
    """Seeds that each condition has a run with."""
    runs: tuple[StudyRun, ...]
    """One a condition and seed, in any order; there may be more."""
    baselines: Mapping[str, str] = field(default_factory=dict)
    """Baselines of the conditions that aren't compared with the first."""

    def baseline(self, condition: str) -> str:
        """Return the condition to compare with; the condition itself if it is a baseline."""
        return self.baselines.get(condition, self.conditions[0])

    def metric(self, transfer: str) -> Metric:
        """Return the metric of a transfer."""
        return get_task(self.transfers[transfer].task).metric

    def is_frozen(self, transfer: str) -> bool:
        """Return whether the transfer keeps the encoder frozen."""
        return bool(self.transfers[transfer].model.to_json().get("freeze_encoder"))

    def values(self, condition: str, transfer: str) -> list[float]:
        """Return a condition's metric for each seed, in the metric's unit and the seeds' order."""
        name = self.metric(transfer).name
        by_seed = {
            run.seed: run.metrics[transfer][name] for run in self.runs if run.condition == condition
        }
        return [by_seed[seed] for seed in self.seeds]

    def difference(self, condition: str, baseline: str, transfer: str) -> PairedDifference:
        """Return the improvement of a condition over another, paired by seed."""
        metric = self.metric(transfer)
        values = self.values(condition, transfer)
        references = self.values(baseline, transfer)
        improvements = [metric.improvement(a, b) for a, b in zip(values, references, strict=True)]
        return paired_difference(improvements, references)


def sort_by_task(transfers: Mapping[str, FinetuneConfig]) -> dict[str, FinetuneConfig]:
    """Return the transfers, dense tasks first."""
    order = {name: number for number, name in enumerate(_TASKS)}
    return dict(sorted(transfers.items(), key=lambda t: (order.get(t[1].task, len(order)), t[0])))


def collect_evaluations(evaluations: Mapping[str, Sequence[str]]) -> ResultsTable:
    """Build a table from any evaluations (URIs by condition), the baseline first.

    A transfer is a task, with a frozen or a trained encoder; the seed is that of the fine-tuning.
    Only transfers and seeds of all conditions are kept.

    Raises:
        ConfigError: the conditions have no transfer and seed in common, or a condition has two
            evaluations of one transfer and seed.
        ArtifactError, NotFoundError: an evaluation or its model doesn't exist.
    """
    by_condition: dict[str, dict[tuple[int, str], tuple[str, CheckpointMetadata]]] = {}
    transfers: dict[str, FinetuneConfig] = {}
    for condition, uris in evaluations.items():
        own = by_condition.setdefault(condition, {})
        for uri in uris:
            metadata = read_metadata(read_evaluation(uri).model.uri)
            config = FinetuneConfig.from_stored(metadata.recipe, metadata.uri)
            is_frozen = config.model.to_json().get("freeze_encoder")
            name = f"{config.task}, frozen" if is_frozen else config.task
            if (config.train.seed, name) in own:
                raise ConfigError(
                    f"{condition!r} has two evaluations of {name} with seed {config.train.seed}",
                    expected="one of each transfer and seed",
                    action="give each under a condition of its own",
                )
            transfers.setdefault(name, config)
            own[config.train.seed, name] = (uri, metadata)
    names = [
        n for n in transfers if all(any(n == t for _, t in own) for own in by_condition.values())
    ]
    seeds = sorted(
        set.intersection(
            *(
                {s for s, _ in own if all((s, n) in own for n in names)}
                for own in by_condition.values()
            )
        )
    )
    if not names or not seeds:
        raise ConfigError(
            "no task was evaluated with the same seed under every condition",
            expected="for each condition evaluations of the same tasks with the same train.seed",
            action="fine-tune what is missing",
        )
    return ResultsTable(
        conditions=tuple(by_condition),
        transfers=sort_by_task({name: transfers[name] for name in names}),
        seeds=tuple(seeds),
        runs=tuple(
            _run(condition, seed, {name: own[seed, name] for name in names})
            for condition, own in by_condition.items()
            for seed in seeds
        ),
    )


def _run(
    condition: str, seed: int, evaluations: Mapping[str, tuple[str, CheckpointMetadata]]
) -> StudyRun:
    parents = [p for _, metadata in evaluations.values() for p in metadata.parents]
    encoders = {p.uri for p in parents if p.role == "encoder"}
    return StudyRun(
        condition=condition,
        seed=seed,
        encoder=", ".join(sorted(encoders)),
        evaluations={name: uri for name, (uri, _) in evaluations.items()},
        metrics={
            name: dict(read_evaluation(uri).metrics) for name, (uri, _) in evaluations.items()
        },
    )


_MIN_SEEDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """Results of an encoder of the paper."""

    name: str
    """Data and captions, or method and budget."""
    values: dict[str, float]
    """Metric by task, in its unit: box mAP of detection, mIoU, RMSE in meters, top-1."""


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
    """Format a value without its unit: percents to a tenth, meters to a millimeter."""
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
            f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}. Colored where the interval "
            "leaves 0 out."
        )
    tasks = {results.transfers[t].task for t in transfers}
    gray = [_paper_row(results, transfers, row) for row in paper if tasks & row.values.keys()]
    if gray:
        note += " In gray, the paper's encoders, on photographs."
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

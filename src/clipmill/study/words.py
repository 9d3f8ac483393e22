"""What a study found, in words, Markdown, LaTeX and rows."""

from clipmill.study.result import StudyResult
from clipmill.study.statistics import bootstrap
from clipmill.study.tables import heading, plain


def verdict(result: StudyResult) -> list[str]:
    """A sentence for each caption source: where its interval over the first one leaves 0 out."""
    sources = result.config.table("sources") or list(result.config.conditions)
    first, *others = sources
    found = []
    for condition in others:
        better: list[str] = []
        worse: list[str] = []
        for transfer in result.config.transfers:
            gain = result.gain(condition.name, first.name, transfer)
            if gain.is_sure:
                metric = result.metric(transfer)
                figure = plain(abs(gain.change.mean), metric)
                words = f"{transfer} (by {figure} {metric.unit}".strip() + ")"
                (better if gain.change.mean > 0 else worse).append(words)
        for names, word in ((better, "better"), (worse, "worse")):
            if names:
                found.append(f"{condition.name} is {word} than {first.name} at {_and(names)}.")
    return found or [f"No source differs from {first.name} by more than its interval."]


def markdown(result: StudyResult) -> str:
    """All conditions as a Markdown table: means and 95 % intervals."""
    head = ["encoder from", *(heading(result, t) for t in result.config.transfers)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _cells(result)]
    return "\n".join(lines) + "\n"


def latex(result: StudyResult) -> str:
    """The same for a paper; needs the package booktabs."""
    transfers = result.config.transfers
    head = ["Encoder from", *(heading(result, t) for t in transfers)]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(transfers)}}}", r"\toprule"]
    lines += [_latex_row(head), r"\midrule"]
    lines += [_latex_row(cells) for cells in _cells(result)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def rows(result: StudyResult) -> list[dict[str, str | int | float]]:
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
        for run in result.runs
        for transfer, metrics in run.metrics.items()
        for name, value in metrics.items()
    ]


def _cells(result: StudyResult) -> list[list[str]]:
    return [
        [c.name, *(_cell(result, c.name, transfer) for transfer in result.config.transfers)]
        for c in result.config.conditions
    ]


def _cell(result: StudyResult, condition: str, transfer: str) -> str:
    found, metric = bootstrap(result.figures(condition, transfer)), result.metric(transfer)
    low, high = plain(found.low, metric), plain(found.high, metric)
    return f"{plain(found.mean, metric)} [{low}, {high}]"


def _latex_row(cells: list[str]) -> str:
    escaped = [cell.replace("%", r"\%").replace("&", r"\&").replace("_", r"\_") for cell in cells]
    return " & ".join(escaped) + r" \\"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

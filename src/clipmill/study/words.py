"""What a study found, in words, Markdown, LaTeX and rows."""

from clipmill.study.findings import Findings
from clipmill.study.statistics import bootstrap
from clipmill.study.tables import heading, plain

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

"""Results as JSON lines, and the Markdown table that is made from them alone.

The first line is the run: date, machine, commit. A case has a line with its contenders, versions,
settings, answers and bars, then one for each lap; a case that couldn't run has a line with the
fault.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.case import LIMIT

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
NONE_YET = "No run on a machine without other work is recorded yet; `make bench` prints this table."
_NONE = "\N{EN DASH}"
_HEADINGS = (
    "part",
    "case",
    "clipmill",
    "peer",
    "its rate",
    "ours / peer",
    "limit",
    "ours / limit",
    "peak MB: ours, peer, limit",
    "CPU ms each: ours, peer, limit",
    "bars",
)


@dataclass(frozen=True)
class Result:
    """One case's lines."""

    case: dict[str, Any]
    """Its description."""
    laps: dict[str, list[dict[str, float]]]
    """Laps by contender, in the order in which they ran."""

    def rates(self, name: str) -> list[float]:
        """Return units per second of each lap."""
        return [lap["count"] / lap["seconds"] for lap in self.laps[name]]

    def ratios(self, name: str) -> list[float]:
        """Return our rate over a contender's, lap by lap."""
        pairs = zip(self.rates(self.case["ours"]), self.rates(name), strict=True)
        return [mine / its for mine, its in pairs]

    def cpu_ms(self, name: str) -> float:
        """Return the median CPU time of a unit, in milliseconds."""
        return 1000 * median(lap["cpu_seconds"] / lap["count"] for lap in self.laps[name])

    def peak_bytes(self, name: str) -> float:
        """Return the most memory of a lap."""
        return max(lap["peak_bytes"] for lap in self.laps[name])

    def seconds_each(self, name: str) -> float:
        """Return the median time of a unit, in seconds."""
        return median(lap["seconds"] / lap["count"] for lap in self.laps[name])


def read(lines: Iterable[str]) -> tuple[dict[str, Any], list[Result], list[dict[str, Any]]]:
    """Return the run, results by case, and the lines of cases that failed."""
    run: dict[str, Any] = {}
    results: dict[tuple[str, str], Result] = {}
    failed = []
    for line in lines:
        value = json.loads(line)
        key = (value.get("part"), value.get("case"))
        kind = value.pop("kind")
        if kind == "run":
            run = value
        elif kind == "case":
            results[key] = Result(value, {name: [] for name in value["contenders"]})
        elif kind == "lap":
            results[key].laps[value["contender"]].append(value)
        else:
            failed.append(value)
            results.pop(key, None)
    return run, list(results.values()), failed


def table(lines: Iterable[str]) -> str:
    """Return the Markdown of a result file: machine, table, settings, faults."""
    run, results, failed = read(lines)
    machine = run["machine"]
    head = (
        f"{run['date']}, {machine['processor']}, {machine['cores']} cores, Python "
        f"{machine['python']}, load average {machine['load']:.2f} before and "
        f"{run['load_after']:.2f} after the run. Ratios are medians of laps that alternate, "
        "with the smallest and the largest."
    )
    text = [
        head,
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|" + "---|" * len(_HEADINGS),
    ]
    text += ["| " + " | ".join(row) + " |" for result in results for row in _rows(result)]
    settings = [line for result in results for line in _settings(result)]
    if settings:
        text += ["", "Settings:", "", *settings]
    if failed:
        text += ["", "Failed:", ""]
        text += [f"- {f['part']}, {f['case']}: {f['fault'].splitlines()[0]}" for f in failed]
    return "\n".join(text) + "\n"


def _rows(result: Result) -> Iterable[list[str]]:
    case = result.case
    ours, unit = case["ours"], case["unit"]
    peers = [name for name in case["contenders"] if name not in {ours, LIMIT}]
    has_limit = LIMIT in case["contenders"]
    for peer in peers or [""]:
        names = [ours, peer, LIMIT]
        there = [name if name in case["contenders"] else "" for name in names]
        yield [
            case["part"],
            case["case"],
            f"{_rate(result, ours)} {unit}/s",
            _versioned(case["contenders"][peer], peer) if peer else _NONE,
            _rate(result, peer) if peer else _NONE,
            _ratio(result, peer) if peer else _NONE,
            _rate(result, LIMIT) if has_limit else _NONE,
            _ratio(result, LIMIT) if has_limit else _NONE,
            ", ".join(f"{result.peak_bytes(n) / 1e6:.0f}" if n else _NONE for n in there),
            ", ".join(f"{result.cpu_ms(n):.3g}" if n else _NONE for n in there),
            "; ".join(_bars(result, peer)) or _NONE,
        ]


def _rate(result: Result, name: str) -> str:
    return _number(median(result.rates(name)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(result: Result, name: str) -> str:
    ratios = result.ratios(name)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)}"
    return f"{median(ratios):.2f}x ({spread})"


def _versioned(contender: Mapping[str, Any], name: str) -> str:
    versions = [v for v in contender["versions"].values() if v]
    return f"{name} {versions[0]}" if versions else name


def _bars(result: Result, peer: str) -> Iterable[str]:
    case = result.case
    for name in (peer, LIMIT):
        bar = case["contenders"].get(name, {}).get("at_least")
        if bar is not None:
            yield _bar(f"{bar:g}x of {name}", is_met=median(result.ratios(name)) >= bar)
    seconds = result.seconds_each(case["ours"])
    if case["at_most_seconds"] is not None:
        text = f"at most {case['at_most_seconds']:g} s, {seconds:.2f} s"
        yield _bar(text, is_met=seconds <= case["at_most_seconds"])
    if case["over_limit_seconds"] is not None:
        over = seconds - result.seconds_each(LIMIT)
        text = f"{1000 * case['over_limit_seconds']:g} ms over the limit, {1000 * over:.1f} ms"
        yield _bar(text, is_met=over <= case["over_limit_seconds"])


def _bar(text: str, *, is_met: bool) -> str:
    return f"{text}: {'met' if is_met else '**missed**'}"


def _settings(result: Result) -> Iterable[str]:
    case = result.case
    sizes = ", ".join(f"{name} {value:,}" for name, value in case["sizes"].items())
    yield f"- {case['part']}, {case['case']} ({sizes})"
    for name, contender in case["contenders"].items():
        versions = ", ".join(f"{p} {v}" for p, v in contender["versions"].items() if v)
        words = "; ".join(text for text in (versions, contender["settings"]) if text)
        if words:
            yield f"    - {name}: {words}"


def page(text: str, results: Path) -> str:
    """Return a page whose section between the marks is made from a result file, if it's there."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    body = table(results.read_text().splitlines()) if results.exists() else NONE_YET + "\n"
    return f"{head}{BEGIN}\n{body}{END}{tail}"

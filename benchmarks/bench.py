"""Ours, peers and the limit, alternating in one run: ``make bench``, ``make bench PART=loader``.

Each contender of a case runs in a process of its own, which stands still but in its laps. Outputs
are compared before anything is measured. Raw results are written as JSON lines, and one Markdown
table is printed. A case that can't run, or whose outputs differ, fails the run; all others run
still. ``--page`` only writes docs/performance.md from the committed results.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.case import Case, Contender, Sizes, difference
from harness.machine import machine, versions
from harness.processes import ContenderError, ContenderProcess, private_pipes
from harness.results import page, read, table
from harness.session import EndOfLapsError, PipeSession

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "start",
    "sharding",
    "loader",
    "pretrain-step",
    "finetune-step",
    "recaption",
    "selection",
    "serving",
)
SCRIPTS = ("asyncio script", "pandas script", "pyarrow script")
"""Peers that are a few lines of ours around public libraries."""
GROWTH = "scale"
"""The part with a time budget of its own: only where it's named."""
PAGE = ROOT / "docs" / "performance.md"
RECORDED = ROOT / "benchmarks" / "results.jsonl"
ENVIRONMENTS = {
    "peers": Path(sys.executable),
    "img2dataset": ROOT / ".venv-img2dataset" / "bin" / "python",
}

Write = Callable[[dict[str, Any]], None]


def cases(part: str) -> tuple[Case, ...]:
    """Return the cases of a part."""
    found: tuple[Case, ...] = importlib.import_module(f"parts.{part.replace('-', '_')}").CASES
    return found


def run_case(part: str, case: Case, sizes: Sizes, rounds: int, scratch: Path, write: Write) -> None:
    """Measure one case.

    Raises:
        ContenderError: a contender can't run, or its answer isn't ours.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name, ExitStack() as stack:
        folder = Path(name)
        case.prepare(folder, sizes)
        processes = [
            stack.enter_context(start(part, case, contender, sizes, folder))
            for contender in case.contenders
        ]
        answers = [process.answer() for process in processes]
        write({"kind": "case", **description(part, case, sizes, answers)})
        for process, answer in zip(processes[1:], answers[1:], strict=True):
            if fault := difference(case, answers[0], answer):
                raise ContenderError(f"{process.name} did other work: {fault}")
        for number in range(rounds):
            for process in processes:
                lap = process.lap()
                load = round(os.getloadavg()[0], 2)
                key = {"part": part, "case": case.name, "contender": process.name}
                write({"kind": "lap", **key, "round": number, "load": load, **lap})


def start(
    part: str, case: Case, contender: Contender, sizes: Sizes, folder: Path
) -> ContenderProcess:
    """Start a contender's process."""
    python = ENVIRONMENTS[contender.environment]
    if not python.exists():
        raise ContenderError(f"{contender.name}: {python} isn't there: run it by `make bench`")
    command = [str(python), __file__, "--contender", part, case.name, contender.name]
    environment = {**os.environ, "CLIPMILL_CACHE": str(folder / "cache"), "MMCV_WITH_OPS": "0"}
    return ContenderProcess(
        contender.name, [*command, str(folder), json.dumps(dict(sizes))], folder, environment
    )


def description(
    part: str, case: Case, sizes: Sizes, answers: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all that the table needs of a case, but its laps."""
    return {
        "part": part,
        "case": case.name,
        "unit": case.unit,
        "sizes": dict(sizes),
        "ours": case.contenders[0].name,
        "at_most_seconds": case.at_most_seconds,
        "over_limit_seconds": case.over_limit_seconds,
        "contenders": {
            contender.name: {
                "versions": contender_versions(contender),
                "settings": contender.settings,
                "at_least": contender.at_least,
                "answer": answer,
            }
            for contender, answer in zip(case.contenders, answers, strict=True)
        },
    }


def contender_versions(contender: Contender) -> dict[str, str]:
    """Return the versions of a contender's packages in its environment."""
    if contender.environment == "peers":
        return versions(contender.packages)
    code = "import json,sys; from harness.machine import versions; "
    code += "print(json.dumps(versions(sys.argv[1:])))"
    command = [str(ENVIRONMENTS[contender.environment]), "-c", code, *contender.packages]
    folder = Path(__file__).parent
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def be_contender(part: str, case_name: str, name: str, folder: str, sizes: str) -> None:
    """Run one contender, whose turns come by standard input."""
    turns, results = private_pipes()
    (case,) = (c for c in cases(part) if c.name == case_name)
    (contender,) = (c for c in case.contenders if c.name == name)
    try:
        contender.run(Path(folder), json.loads(sizes), PipeSession(turns, results))
    except EndOfLapsError:
        return
    raise SystemExit(f"{name} ended before its laps did")


def sizes_of(part: str, case: Case, options: argparse.Namespace) -> dict[str, int]:
    """Return a case's sizes with those that were given in place of its own.

    Raises:
        SystemExit: a size doesn't exist.
    """
    sizes = dict(case.tiny if options.tiny else case.sizes)
    for text in options.set:
        place, _, value = text.partition("=")
        target, _, name = place.rpartition(".")
        if target in {"", part}:
            if name not in sizes and target:
                raise SystemExit(f"error: {part} has no size {name}: {', '.join(sizes)}")
            sizes |= {name: int(value)} if name in sizes else {}
    return sizes


def measure(options: argparse.Namespace) -> int:
    """Run the parts, print the table; return the exit code."""
    # Contenders that stand still wouldn't end by themselves.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    before = machine()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines: list[str] = []
    num_failed = 0

    def write(value: dict[str, Any]) -> None:
        lines.append(json.dumps(value))
        path.write_text("\n".join([json.dumps(run()), *lines]) + "\n")

    def run() -> dict[str, Any]:
        load = round(os.getloadavg()[0], 2)
        return {
            "kind": "run",
            "date": date,
            "commit": git.stdout.strip(),
            "machine": before,
            "load_after": load,
        }

    for part in options.parts or PARTS:
        for case in cases(part):
            started = time.perf_counter()
            try:
                sizes = sizes_of(part, case, options)
                rounds = options.rounds or (2 if options.tiny else case.rounds)
                run_case(part, case, sizes, rounds, options.scratch, write)
            except Exception as error:  # noqa: BLE001  # whatever it is, the part failed
                num_failed += 1
                fault = f"{type(error).__name__}: {error}"
                write({"kind": "fault", "part": part, "case": case.name, "fault": fault})
                sys.stderr.write(f"FAILED {part}, {case.name}: {fault}\n")
            seconds = time.perf_counter() - started
            sys.stderr.write(f"{part}, {case.name}: {seconds:.0f} s\n")
    text = table(path.read_text().splitlines())
    if GROWTH in options.parts:
        text += "\n" + write_growth(path, options.out / "growth.svg")
    (options.out / "table.md").write_text(text)
    print(text)
    sys.stderr.write(f"raw results: {path}\n")
    return 1 if num_failed else 0


def write_growth(results: Path, picture: Path) -> str:
    """Draw the growth of a result file's stages; return the table."""
    from parts.scale import growth_table, plot

    run, measured, _ = read(results.read_text().splitlines())
    machine = run["machine"]
    caption = f"{run['date']}, {machine['processor']}, {machine['cores']} cores, "
    plot(measured, picture, f"{caption}load {machine['load']:.1f} to {run['load_after']:.1f}")
    return growth_table(measured)


def main() -> int:
    """Measure, write the page, or be a contender."""
    if sys.argv[1:2] == ["--contender"]:
        be_contender(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, {GROWTH}")
    parser.add_argument("--rounds", type=int, help="laps of each contender; a case's own number")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: to see that it works")
    parser.add_argument(
        "--set", action="append", default=[], metavar="[PART.]SIZE=N", help="another size"
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".clipmill" / "bench")
    parser.add_argument("--scratch", type=Path, help="folder for temporary data")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md, and end")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, GROWTH}:
        parser.error(f"no part {', '.join(sorted(unknown))}: of {', '.join(PARTS)}, {GROWTH}")
    if options.page:
        PAGE.write_text(page(PAGE.read_text(), RECORDED))
        return 0
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())

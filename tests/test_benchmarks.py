"""Benchmarks start where a name that they use moved; the parts of ``make bench`` run, tiny."""

import ast
import importlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = sorted(FOLDER.rglob("*.py"))
sys.path.insert(0, str(FOLDER))

import bench  # noqa: E402
from harness.case import LIMIT, Case, Contender, difference  # noqa: E402
from harness.machine import versions  # noqa: E402
from harness.processes import ContenderError, ContenderProcess, cpu_seconds  # noqa: E402
from harness.results import BEGIN, END, Result, page, read, table  # noqa: E402
from harness.session import EndOfLapsError, LocalSession  # noqa: E402
from parts.scale import growth_table, plot  # noqa: E402

PARTS = (*bench.PARTS, bench.GROWTH)


def distinct_cases():
    """Cases whose programs aren't those of a case before, and that start no second server."""
    seen = {"serve"}
    for part in PARTS:
        for case in bench.cases(part):
            ours = case.contenders[0].run
            name = f"{ours.func.__name__} {ours.args}" if hasattr(ours, "func") else ours.__name__
            if not (f"{part} {name}" in seen or name in seen):
                seen.add(f"{part} {name}")
                yield part, case


def names_in(path: Path) -> set[str]:
    """What a module defines or imports at its top."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_a_benchmark_imports_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        names = {alias.name for alias in node.names}
        if node.module.split(".")[0] == "clipmill":
            there = set(dir(importlib.import_module(node.module)))
        elif (sibling := FOLDER / f"{node.module}.py").exists():
            there = names_in(sibling)
        else:
            continue  # a peer, which the benchmark's page says how to install
        there |= {n for n in names - there if find_spec(f"{node.module}.{n}")}
        assert names <= there, f"{node.module} lacks {names - there}"


def run(contender, folder, sizes):
    """Return a contender's answer and laps."""
    session = LocalSession(1)
    with pytest.raises(EndOfLapsError):
        contender.run(folder, sizes, session)
    answer, *laps = session.messages
    return answer["answer"], laps


@pytest.mark.parametrize(
    ("part", "case"), list(distinct_cases()), ids=lambda value: getattr(value, "name", value)
)
def test_ours_and_the_limit_do_the_same_work(part, case, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    case.prepare(tmp_path, case.tiny)
    answers = {}
    for contender in case.contenders:
        if contender.name not in {case.contenders[0].name, LIMIT}:
            continue  # `make bench` runs peers
        answers[contender.name], (lap,) = run(contender, tmp_path, case.tiny)
        assert lap["count"] > 0
        assert lap["seconds"] > 0
    if LIMIT in answers:
        assert not difference(case, answers["clipmill"], answers[LIMIT])


@pytest.mark.parametrize("part", PARTS)
def test_cases_are_ours_against_named_programs(part):
    for case in bench.cases(part):
        names = [contender.name for contender in case.contenders]
        assert names[0] == "clipmill"
        assert len(set(names)) == len(names)
        assert case.sizes.keys() == case.tiny.keys()
        for contender in case.contenders[1:]:
            assert contender.packages or contender.name in {LIMIT, *bench.SCRIPTS}, contender.name


def counting(answer):
    def contender(folder, sizes, session):
        session.answer(value=answer)
        session.run(lambda: sizes["count"])

    return contender


def small_case(*answers, **options):
    names = ("clipmill", "other", LIMIT)
    contenders = (
        Contender(name=name, run=counting(answer), at_least=bar)
        for name, answer, bar in zip(names, answers, (None, 1.0, 0.5), strict=False)
    )
    return Case(
        name="counts",
        unit="numbers",
        contenders=tuple(contenders),
        sizes={"count": 3},
        tiny={"count": 1},
        **options,
    )


@pytest.mark.parametrize(
    ("other", "fault"),
    [({"a": 1}, ""), ({"a": 2}, "a is 2, ours 1"), ({"b": 1}, "nothing to compare")],
)
def test_answers_are_compared_in_what_both_tell(other, fault):
    assert difference(small_case(1), {"a": 1, "c": 0}, other).startswith(fault)
    assert bool(difference(small_case(1), {"a": 1, "c": 0}, other)) == bool(fault)


@pytest.mark.parametrize(("other", "is_equal"), [(1.01, True), (1.2, False)])
def test_an_answer_may_have_a_tolerance(other, is_equal):
    case = small_case(1, tolerances={"a": 0.02})
    assert (difference(case, {"a": 1.0}, {"a": other}) == "") is is_equal


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from harness.processes import private_pipes
from harness.session import EndOfLapsError, PipeSession
session = PipeSession(*private_pipes())
print("what a library prints")
session.answer(value=1)
ticks = 0
try:
    while True:
        session.start()
        if sys.argv[2] == "fails" and ticks:
            raise RuntimeError("out of luck")
        block = bytearray(200_000_000)
        end = time.process_time() + 0.05
        while time.process_time() < end:
            ticks += 1
        session.stop(7)
        del block
except EndOfLapsError:
    pass
"""


@pytest.fixture
def child(tmp_path):
    def start(word):
        command = [sys.executable, "-c", CHILD, str(FOLDER), word]
        return ContenderProcess("child", command, tmp_path, {})

    return start


def test_a_contender_is_measured_and_halted_between_its_laps(child):
    with child("works") as process:
        assert process.answer() == {"value": 1}
        lap = process.lap()
        assert lap["count"] == 7
        assert 0.04 <= lap["cpu_seconds"] < 0.5
        assert 200e6 < lap["peak_bytes"] < 400e6
        status = Path(f"/proc/{process._process.pid}/stat")
        end = time.monotonic() + 10  # the signal may take a moment
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end
        assert process.lap()["count"] == 7
    assert process._process.returncode == 0


def test_a_contender_that_ends_is_an_error_with_its_log(child):
    with child("fails") as process:
        process.answer()
        process.lap()
        with pytest.raises(ContenderError, match="out of luck"):
            process.lap()


def test_cpu_time_is_this_process_s_too():
    before = cpu_seconds()
    sum(range(3_000_000))
    assert cpu_seconds() >= before


def lines(case, laps):
    contenders = {c.name: {"versions": {}, "settings": "", "at_least": c.at_least} for c in case}
    yield {
        "kind": "run",
        "date": "2026-01-02 03:04 UTC",
        "machine": {"processor": "CPU", "cores": 2, "python": "3.11.1", "load": 0.25},
        "load_after": 2.0,
    }
    key = {"part": "part", "case": "counts"}
    yield {
        "kind": "case",
        **key,
        "unit": "numbers",
        "sizes": {"count": 3},
        "ours": "clipmill",
        "at_most_seconds": None,
        "over_limit_seconds": None,
        "contenders": contenders,
    }
    for name, seconds in laps:
        work = {"seconds": seconds, "count": 10, "cpu_seconds": 0.5, "peak_bytes": 3e6}
        yield {"kind": "lap", **key, "contender": name, **work}


def test_the_table_has_medians_of_ratios_with_their_spread_and_the_bars():
    laps = [("clipmill", 1.0), ("other", 2.0), (LIMIT, 0.25)]
    laps += [("clipmill", 2.0), ("other", 2.0), (LIMIT, 0.5)]
    laps += [("clipmill", 1.0), ("other", 1.5), (LIMIT, 0.25)]
    text = [json.dumps(line) for line in lines(small_case(1, 1, 1).contenders, laps)]
    row = next(line for line in table(text).splitlines() if "counts |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "part",
        "counts",
        "10 numbers/s",
        "other",
        "5",
        "1.50x (1.00 to 2.00, 3)",
        "40",
        "0.25x (0.25 to 0.25, 3)",
        "3, 3, 3",
        "50, 50, 50",
        "1x of other: met; 0.5x of limit: **missed**",
    ]


def test_growth_is_an_exponent_of_time_and_a_ratio_of_memory(tmp_path):
    results = []
    for factor, seconds, held in ((1, 1.0, 100e6), (10, 11.0, 100e6), (100, 144.0, 109e6)):
        sizes = {"base": 1000, "factor": factor, "per_shard": 10}
        case = {"part": "scale", "case": f"sort, {factor} n", "ours": "clipmill", "sizes": sizes}
        lap = {"seconds": seconds, "count": 1000 * factor, "peak_bytes": held}
        results.append(Result(case, {"clipmill": [lap]}))
    row = growth_table(results).splitlines()[-1]
    # log 144 / log 100, just above 1.
    cells = [
        "sort",
        "1,000, 10,000, 100,000",
        "1, 11, 144",
        "100, 100, 109",
        "1.08",
        "1.09x",
        "met",
    ]
    assert row == "| " + " | ".join(cells) + " |"
    plot(results, tmp_path / "growth.svg", "a machine")
    assert "</svg>" in (tmp_path / "growth.svg").read_text()


def test_a_fault_is_in_the_table_and_its_case_is_not():
    text = [json.dumps(line) for line in lines(small_case(1, 1).contenders, [("clipmill", 1.0)])]
    text.append(json.dumps({"kind": "fault", "part": "part", "case": "counts", "fault": "gone\n"}))
    assert read(text)[1] == []
    assert "- part, counts: gone" in table(text)


def test_docs_performance_is_made_from_the_recorded_results():
    text = bench.PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert page(text, bench.RECORDED) == text, "run python benchmarks/bench.py --page"


def test_a_case_that_cannot_run_fails_the_run(tmp_path, monkeypatch, capsys):
    case = small_case(1)
    lost = Contender(name="other", run=counting(1), environment="lost")
    monkeypatch.setitem(bench.ENVIRONMENTS, "lost", tmp_path / "python")
    changed = Case(
        name="counts",
        unit="numbers",
        contenders=(lost,),
        sizes=case.sizes,
        tiny=case.tiny,
    )
    monkeypatch.setattr(bench, "cases", lambda part: (changed,))
    monkeypatch.setattr(sys, "argv", ["bench.py", "start", "--out", str(tmp_path / "out")])
    assert bench.main() == 1
    assert "isn't there" in capsys.readouterr().err
    text = (tmp_path / "out" / "results.jsonl").read_text()
    kinds = [json.loads(line)["kind"] for line in text.splitlines()]
    assert kinds == ["run", "fault"]


def test_versions_of_what_is_not_installed_are_empty():
    assert versions(["no-such-package"]) == {"no-such-package": ""}

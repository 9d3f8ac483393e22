"""What commands print: the result on standard output, hints on standard error."""

import sys

import pytest
from typer.testing import CliRunner

from clipmill import stages
from clipmill.cli import app
from clipmill.cli.output import format_table


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Stages that return at once, without the extras that training needs."""
    monkeypatch.setattr("clipmill.cli.extras.find_spec", lambda name: name)
    for name in ("pretrain", "pretrain_mae", "pretrain_supervised", "finetune", "scenes", "shard"):
        monkeypatch.setattr(stages, name, lambda *args, **kwargs: "s/x-1")
    for name in ("recaption", "select"):
        monkeypatch.setattr(stages, name, lambda *args, **kwargs: "captions/x")


def run(*arguments, **variables):
    answer = CliRunner().invoke(app, arguments, env=variables, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout, answer.stderr.splitlines()


TRAINING = [
    ("pretrain clip D --store s", "clip-tiny", "pretrain-clip"),
    ("pretrain mae D --store s", "mae-tiny", "pretrain-mae"),
    ("pretrain supervised --data D --store s", "supervised-tiny", "pretrain-supervised"),
    ("finetune --encoder E --data D --store s", "upernet-tiny", "finetune"),
    ("data generate-scenes --store s", "scenes-tiny", "generate-scenes"),
    ("data recaption D --captioner C", "recaption-tiny", "recaption"),
]


@pytest.mark.parametrize(("line", "recipe", "stage"), TRAINING)
def test_a_toy_default_is_named(line, recipe, stage):
    output, (first, last) = run(*line.split())
    assert output in {"s/x-1\n", "captions/x\n"}
    assert first.startswith(f"recipe: {recipe} (default: ")
    assert first.endswith(f'; see "clipmill recipes list --stage {stage}")')
    assert last.startswith("next: clipmill ")
    assert len(run(*line.split(), "--recipe", recipe)[1]) == 1


def test_next_commands_carry_the_result():
    hints = run("finetune", "--encoder", "E", "--data", "a b", "--store", "s")[1]
    assert hints[-1] == "next: clipmill eval task s/x-1 --data 'a b' --store s"
    assert run("data", "shard", "S", "--store", "s")[1] == [
        "next: clipmill data recaption s/x-1 --captioner CAPTIONER"
    ]
    hints = run("data", "recaption", "D", "--captioner", "C")[1]
    assert "--captions both --caption-layer captions/x" in hints[-1]


def test_next_commands_parse(monkeypatch):
    from clipmill.cli.entry import check_command

    seen = []
    for name in ("train", "data"):
        module = sys.modules[f"clipmill.cli.{name}"]
        monkeypatch.setattr(module, "print_next", lambda *line: seen.append(line))
    for line, _, _ in TRAINING:
        run(*line.split())
    assert len(seen) == len(TRAINING)
    for line in seen:
        check_command(app, line)


def test_only_the_first_rank_prints_hints():
    assert run("pretrain", "clip", "D", "--store", "s", RANK="1")[1] == []


def test_json_of_a_uri():
    output, _ = run("pretrain", "mae", "D", "--store", "s", "--json")
    assert output == '{\n  "uri": "s/x-1"\n}\n'


def test_a_table():
    text = format_table(["a", "number"], [["long", "1"], ["b"]], right=" r")
    assert text == "a     number\nlong       1\nb"


def test_a_report_takes_a_comparison(monkeypatch, tmp_path):
    def report(dataset, layer, captioner, encoders, evaluations, store, *, comparison):
        assert (dataset, layer, captioner, store) == ("D", "L", "C", str(tmp_path))
        assert (encoders, evaluations, comparison) == (["E"], ["V"], "X")
        (tmp_path / "report.html").write_text("page")
        return str(tmp_path)

    monkeypatch.setattr(stages, "report", report)
    page = tmp_path / "out.html"
    arguments = ["--dataset", "D", "--caption-layer", "L", "--captioner", "C", "--encoder", "E"]
    arguments += ["--evaluation", "V", "--comparison", "X", "--store", str(tmp_path)]
    output, hints = run("report", *arguments, "--output", str(page))
    assert (output, hints) == (f"{page}\n", [f"next: clipmill show {tmp_path}"])
    assert page.read_text() == "page"

"""The command's two forms, and what goes with neither."""

import pytest
from typer.testing import CliRunner

from clipmill import stages
from clipmill.cli import app
from clipmill.cli.entry import check_command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("http://host", "give URL and IMAGE, or MODEL, --data and --store"),
        ("MODEL --data D", "give MODEL, --data and --store"),
        ("MODEL --data D --store S --label cat", "are for a server"),
        ("--plan P --set batch_size=2", "--plan has the model"),
        ("MODEL --data D --store S --dry-run", "need --executor argo"),
        ("MODEL --data D --store S --worker 0/2", "--worker goes with --plan"),
    ],
)
def test_options_that_dont_fit_are_refused(line, said):
    answer = CliRunner().invoke(app, ["predict", *line.split()], env={"COLUMNS": "200"})
    assert answer.exit_code == 2
    assert said in answer.output


def test_the_plan_prints_the_workers_command(monkeypatch):
    monkeypatch.setattr(stages, "plan_predict", lambda *args: "s/predictions/seg-1")
    line = ["predict", "MODEL", "--data", "D", "--store", "S", "--plan-only"]
    answer = CliRunner().invoke(app, line)
    assert answer.stdout == "s/predictions/seg-1\n"
    following = answer.stderr.splitlines()[-1]
    assert following == "next: clipmill predict --plan s/predictions/seg-1 --worker I/N"
    check_command(app, following.split()[2:])

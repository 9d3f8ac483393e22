"""Help, completion and JSON of every command."""

import os
import re
import subprocess
import sys
from typing import get_args

import pytest
import typer
from clipmill.pipelines.submit import submit
from typer.testing import CliRunner

from clipmill.cli import app, options
from clipmill.recipes.registry import STAGES, list_recipes, recipe_type
from clipmill.study.config import TableName
from clipmill.tasks.registry import TASKS


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield (*path, name), command
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))
LEAVES = {path: command for path, command in ALL.items() if not hasattr(command, "commands")}
WITHOUT_RESULT = {
    ("serve",),
    ("cluster", "logs"),
    ("cluster", "cancel"),
    ("cluster", "workflow", "suspend"),
    ("cluster", "workflow", "resume"),
}


def names(path):
    return " ".join(path)


@pytest.mark.parametrize("path", ALL, ids=names)
def test_commands_and_their_options_have_help(path):
    command = ALL[path]
    assert command.help
    assert command.help[0].isupper()
    assert command.help.split("\n\n")[0].rstrip().endswith(".")
    for parameter in command.params:
        check_help(parameter, " ".join(path))


def test_the_roots_and_the_submissions_options_have_help():
    submission = typer.Typer()
    submission.command()(submit)
    for command in (typer.main.get_command(app), typer.main.get_command(submission)):
        for parameter in command.params:
            check_help(parameter, command.name)


def check_help(parameter, where):
    assert parameter.help, f"{where}: {parameter.name} has no help"
    first = parameter.help.split()[0]
    assert first not in {"Of", "Until", "Also", "Within", "What", "Only", "A"}, (where, parameter)
    assert first[0].isupper() or ":" in first or first == "gRPC", parameter.help
    assert parameter.help.endswith((".", "...")), f"{where}: {parameter.help}"


@pytest.mark.parametrize("path", sorted(LEAVES.keys() - WITHOUT_RESULT), ids=names)
def test_commands_that_print_a_result_can_print_json(path):
    assert "--json" in {option for p in LEAVES[path].params for option in p.opts}


def test_the_commands_stand_in_panels():
    panels = [command.rich_help_panel for path, command in ALL.items() if len(path) == 1]
    assert set(panels) == {
        *("Quickstart", "Data", "Training", "Evaluation", "Serving", "Artifacts", "Cluster")
    }
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    order = re.findall(r"─ (\w+) ─", text)
    assert order == [
        *("Options", "Quickstart", "Data", "Training"),
        *("Evaluation", "Serving", "Artifacts", "Cluster"),
    ]


def complete(line):
    words = line.split(" ")
    variables = {
        "_CLIPMILL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv[0] = 'clipmill'; from clipmill.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr == ""
    return found.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clipmill finetune --recipe upernet", ["upernet-tiny", "upernet-vit-b16"]),
        ("clipmill pretrain mae --recipe mae-t", ["mae-tiny"]),
        ("clipmill recipes show teacher", ["teacher-datacompdr", "teacher-tiny"]),
        ("clipmill recipes list --task ", list(options.TASKS)),
        ("clipmill recipes list --stage pretrain-", ["pretrain-clip", "pretrain-mae"]),
        ("clipmill data shard x --executor ", ["local", "argo"]),
        ("clipmill promote ", list(options.TASKS)),
        ("clipmill pretrain ", ["clip", "mae", "supervised"]),
        ("clipmill page --enc", ["--encoder"]),
    ],
)
def test_shells_complete(line, expected):
    assert complete(line)[: len(expected)] == expected


def test_completion_knows_all_tasks_tables_and_stages():
    assert get_args(TableName) == sys.modules["clipmill.cli.study"]._TABLES
    assert set(options.TASKS) == set(TASKS)
    assert set(options.recipes_of("")()) >= {("retrieval", options.recipes_of("retrieval")()[0][1])}
    known = {recipe_type(name) for name in list_recipes()}
    assert len(known) == len(STAGES)
    for stage, command in STAGES.items():
        path = tuple(command.split())
        (recipe,) = (p for p in LEAVES[path].params if p.name == "recipe")
        assert recipe.default in {name for name, _ in options.recipes_of(stage)()}

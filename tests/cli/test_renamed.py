"""Old names of commands, options and recipes: they work, with one warning each."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from clipmill import deprecations
from clipmill.cli import app, entry
from clipmill.cli.entry import current_arguments
from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.recipes.registry import RECIPES, get_recipe, recipe_type

ROOT = Path(__file__).resolve().parents[2]
INTERNAL = {("place", "plan_uri")}
"""Renamed fields that no user sets."""
SPECIAL = {"pretrain DATASET", "report URI", "recipes", "recipes NAME"}


@pytest.fixture(autouse=True)
def fresh():
    """Warnings are printed once per process."""
    deprecations.warn_renamed.cache_clear()


def find(path):
    command = typer.main.get_command(app)
    for name in path.split():
        command = command.commands[name]
    return command


@pytest.mark.parametrize("old", sorted(deprecations.COMMANDS.keys() - SPECIAL))
def test_an_old_command_is_the_new_one(old, capsys):
    new = deprecations.COMMANDS[old]
    assert current_arguments([*old.split(), "x", "--json"]) == [*new.split(), "x", "--json"]
    assert capsys.readouterr().err == f'warning: "clipmill {old}" is now "clipmill {new}"\n'
    found = CliRunner().invoke(app, [*old.split(), "--help"])
    assert found.exit_code == 0
    assert f"clipmill {new}" in found.stdout.replace("root ", "clipmill ")
    assert find(new).help
    assert current_arguments(new.split()) == new.split()


def test_pretrain_without_a_method_is_clip(capsys):
    line = ["pretrain", "D", "--store", "s", "--layer", "L"]
    assert current_arguments(line) == [
        *("pretrain", "clip", "D", "--store", "s", "--caption-layer", "L")
    ]
    assert capsys.readouterr().err == (
        'warning: "clipmill pretrain" is now "clipmill pretrain clip"\n'
        'warning: "--layer" is now "--caption-layer"\n'
    )
    for line in (["pretrain"], ["pretrain", "--help"], ["pretrain", "mae", "D"]):
        assert current_arguments(line) == line
    entry.check_command(app, ["pretrain", "D", "--store", "s", "--recipe", "clip-miniature"])


def test_recipes_lists_and_shows(capsys):
    assert current_arguments(["recipes"]) == ["recipes", "list"]
    assert current_arguments(["recipes", "a"]) == ["recipes", "show", "--json", "a"]
    assert current_arguments(["recipes"], completing=True) == ["recipes"]
    assert capsys.readouterr().err.splitlines() == [
        'warning: "clipmill recipes" is now "clipmill recipes list"',
        'warning: "clipmill recipes NAME" is now "clipmill recipes show"',
    ]


@pytest.mark.parametrize(
    "arguments", [["out/studies/a"], ["A=x", "B=y", "--csv"], ["--latex", "out/studies/a"]]
)
def test_report_of_studies_names_its_new_command(arguments):
    with pytest.raises(ConfigError, match="study compare"):
        current_arguments(["report", *arguments])
    page = ["report", "--dataset", "D", "--store", "s"]
    assert current_arguments(page) == page


OPTIONS = [
    (command, old, new)
    for command, options in deprecations.OPTIONS.items()
    for old, new in options.items()
]


@pytest.mark.parametrize(("command", "old", "new"), OPTIONS)
def test_an_old_option_is_the_new_one(command, old, new, capsys):
    changed = current_arguments([*command.split(), *old.split(), "x"])
    assert changed == [*command.split(), *new.split(), "x"]
    assert capsys.readouterr().err == f'warning: "{old}" is now "{new}"\n'
    known = {option for p in find(command).params for option in p.opts}
    assert new.split()[0] in known
    assert old.split()[0] not in known
    # What follows -- is another command's.
    assert current_arguments([*command.split(), "--", old]) == [*command.split(), "--", old]


def test_values_after_an_equals_sign_stay(capsys):
    assert current_arguments(["sweep", "--gate=0.5"]) == ["sweep", "--min-metric=0.5"]
    line = ["data", "score", "D", "--on=argo", "--dry-run"]
    assert current_arguments(line) == [*("data", "score", "D", "--executor", "argo", "--dry-run")]
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("old", deprecations.RECIPES)
def test_an_old_recipe_is_the_new_one(old, capsys):
    new = deprecations.RECIPES[old]
    assert (old in RECIPES, new in RECIPES) == (False, True)
    assert not old.endswith("-miniature") or new == old.replace("-miniature", "-tiny")
    assert get_recipe(old, Config) == get_recipe(new, Config)
    assert recipe_type(old) is recipe_type(new)
    assert capsys.readouterr().err == f'warning: recipe "{old}" is now "{new}"\n'


def test_the_changelog_has_every_name():
    text = (ROOT / "CHANGELOG.md").read_text().partition("\n## [0.1.0]")[0]
    rows = dict(re.findall(r"(?m)^\| `([^`]+)` \| `([^`]+)` \|", text))
    commands = {f"clipmill {old}": f"clipmill {new}" for old, new in deprecations.COMMANDS.items()}
    options = {
        f"clipmill {command} {old}": f"clipmill {command} {new}" for command, old, new in OPTIONS
    }
    recipes = {"*-miniature": "*-tiny"}
    recipes |= {o: n for o, n in deprecations.RECIPES.items() if not o.endswith("-miniature")}
    named = commands | options | recipes
    assert {old: rows.get(old) for old in named} == named


def test_the_changelog_has_every_field():
    text = (ROOT / "CHANGELOG.md").read_text().partition("\n## [0.1.0]")[0]
    rows = re.findall(r"(?m)^\| [\w ]+ \| `([^`]+)` \| `([^`]+)` \|", text)
    last = {tuple(name.rpartition(".")[2] for name in row) for row in rows}
    kinds = [Config]
    for kind in kinds:
        kinds += kind.__subclasses__()
    renamed = {pair for kind in kinds for pair in kind.RENAMED_FIELDS.items()}
    assert len(renamed) > 50
    assert renamed - last == INTERNAL

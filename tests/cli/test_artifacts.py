"""``clipmill ls``, ``show`` and ``recipes``, of local and S3 stores."""

import json

import pytest
from typer.testing import CliRunner

from clipmill.artifacts import describe_artifact, list_artifacts
from clipmill.cli import app
from clipmill.config import Config
from clipmill.errors import ConfigError, NotFoundError
from clipmill.recipes.registry import closest_recipe, describe_recipes, get_recipe
from clipmill.storage import join, open_store, write_bytes, write_json

RECIPE = get_recipe("upernet-tiny", Config, ["train.steps=7"]).to_json()
PARENTS = [{"role": "encoder", "uri": "s3://b/e", "digest": "e" * 64}]


def artifact(kind, **fields):
    return {"kind": kind, "digest": kind[0] * 64, "parents": [], **fields}


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    uri = str(tmp_path) if request.param == "local" else f"s3://tests/{tmp_path.name}"
    model = artifact("task", recipe=RECIPE, metrics={"loss": 1.5}, parents=PARENTS)
    write_json(join(uri, "models", "a", "model.json"), model)
    write_bytes(join(uri, "models", "a", "model.safetensors"), b"12345")
    evaluation = artifact("evaluation", metrics={"mIoU": 31.2}, summary={"mIoU": "31.200 %"})
    write_json(join(uri, "evaluations", "b", "evaluation.json"), evaluation)
    layers = {"num_bytes": 9, "num_samples": 1234}
    write_json(join(uri, "datasets", "d", "dataset.json"), artifact("dataset", summary=layers))
    # A record of a stage, and a damaged file: neither is an artifact.
    write_json(join(uri, "runs", "r", "report.json"), {"name": "report", "seconds": 1})
    write_bytes(join(uri, "models", "broken", "model.json"), b"{")
    return uri


def run(*arguments):
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer


def test_ls_is_a_table(store):
    answer = run("ls", store)
    head, *rows = answer.stdout.splitlines()
    assert head.split() == ["KIND", "NAME", "RECIPE", "DATE", "METRIC"]
    cells = [row.split() for row in rows]
    assert [row[:2] for row in cells] == [
        ["dataset", "datasets/d"],
        ["evaluation", "evaluations/b"],
        ["task", "models/a"],
    ]
    assert cells[0][-2:] == ["1,234", "samples"]
    assert cells[1][-3:] == ["mIoU", "31.200", "%"]
    assert cells[2][2:4] == ["upernet-tiny", "+1"]
    assert answer.stderr == f"next: clipmill show {store}/NAME\n"


def test_ls_of_a_kind_as_json(store):
    (found,) = json.loads(run("ls", store, "--kind", "task", "--json").stdout)
    assert found["uri"] == join(store, "models", "a")
    assert (found["recipe"], found["changed_settings"]) == ("upernet-tiny", {"train.steps": 7})
    assert found["metrics"] == {"loss": 1.5}
    assert found["parents"] == PARENTS
    answer = run("ls", store, "--kind", "study")
    assert (answer.stdout, "holds no artifacts of kind 'study'" in answer.stderr) == ("", True)


def test_show(store):
    text = run("show", join(store, "models", "a")).stdout
    assert "kind    task" in text
    assert "train.steps=7" in text
    assert "loss  1.5" in text
    assert f"encoder  s3://b/e  {'e' * 12}" in text
    found = json.loads(run("show", join(store, "models", "a"), "--json").stdout)
    assert found["num_files"] == 2
    entries = {entry.key: entry.size for entry in open_store(join(store, "models", "a")).entries()}
    assert entries["model.safetensors"] == 5
    assert found["num_bytes"] == sum(entries.values())


def test_what_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="there is nothing under"):
        list_artifacts(str(tmp_path))
    with pytest.raises(NotFoundError, match="no artifact"):
        describe_artifact(str(tmp_path))


def test_recipes_by_stage_and_task():
    assert {r.stage for r in describe_recipes("pretrain")} == {
        *("pretrain-clip", "pretrain-mae", "pretrain-supervised")
    }
    names = {r.name for r in describe_recipes(task="depth")}
    assert {"depth-tiny", "linear-depth-vit-b16", "sweep-depth-tiny"} <= names
    assert "upernet-tiny" not in names
    with pytest.raises(ConfigError, match="no stage 'pretraining'"):
        describe_recipes("pretraining")
    with pytest.raises(ConfigError, match="task 'deph'"):
        describe_recipes(task="deph")


def test_recipes_commands():
    text = run("recipes", "list", "--stage", "pretrain-mae").stdout
    assert text.startswith("pretrain-mae: clipmill pretrain mae --recipe NAME\n  mae-tiny")
    (found,) = json.loads(run("recipes", "list", "--stage", "export", "--json").stdout)
    assert found["command"] == "data export"
    text = run("recipes", "show", "mae-tiny").stdout
    assert "derived from `mae-vit-b16-2.05b`" in text
    assert "\n  train.steps=" in text
    config = json.loads(run("recipes", "show", "mae-tiny", "--json").stdout)
    assert config == get_recipe("mae-tiny", Config).to_json()


def test_the_closest_recipe():
    assert closest_recipe(RECIPE) == ("upernet-tiny", {"train.steps": 7})
    assert closest_recipe({"any": 1}) is None

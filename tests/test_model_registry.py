"""Registries of promoted models: Kubeflow's by its REST API, and MLflow's."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.errors import ConfigError, NotFoundError, ServerError
from clipmill.registry import (
    REGISTRY_VARIABLE,
    TOKEN_VARIABLE,
    KubeflowRegistry,
    MlflowRegistry,
    check_registry,
    open_registry,
)
from clipmill.stage_records import Stage
from clipmill.tracking import TRACKING_VARIABLE
from helpers.kubeflow_registry import BASE, Registry, own_task, real_url, serving

ENCODER = {"role": "encoder", "uri": "s3://b/encoders/e", "digest": "e" * 64}


@pytest.fixture
def url(monkeypatch):
    """Address of a registry, a real one if there is any; the environment names it."""
    if real_url():
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{real_url()}")
        yield real_url()
        return
    with serving(Registry()) as address:
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{address}")
        yield address


def promote(folder: Path, task: str, digit: str) -> str:
    """A stage that promotes a model; the model's URI."""
    parts = {
        "models": ("model.json", {"kind": "task", "parents": [ENCODER, ENCODER]}),
        "evaluations": ("evaluation.json", {"kind": "evaluation", "parents": []}),
    }
    for name, (file, artifact) in parts.items():
        place = folder / name / digit
        place.mkdir(parents=True, exist_ok=True)
        metrics = {"rmse": 0.5, "delta1": 0.75}
        value = {"format": 1, "digest": digit * 64, "metrics": metrics, "summary": {}, **artifact}
        (place / file).write_text(json.dumps(value))
    with Stage("promote") as stage:
        roles = {"model": "models", "evaluation": "evaluations"}
        parents = [
            {"role": role, "uri": str(folder / name / digit), "digest": digit * 64}
            for role, name in roles.items()
        ]
        record = {
            "kind": "promotion", "digest": digit * 64, "parents": parents,
            "gate": {"task": task, "threshold": 1.0}, "summary": {"RMSE": "0.5 m"},
        }  # fmt: skip
        place = folder / "serving" / task
        place.mkdir(parents=True, exist_ok=True)
        (place / "promotion.json").write_text(json.dumps(record))
        stage.set_output(str(place))
    return str(folder / "models" / digit)


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}{BASE}/{path}") as response:
        return json.load(response)


def test_a_promotion_is_a_version_of_a_model_in_kubeflows_registry(url, tmp_path):
    task = own_task()
    for digit in "1221":
        promote(tmp_path, task, digit)
    model = get(url, f"registered_model?name=clipmill-{task}")
    versions = get(url, f"registered_models/{model['id']}/versions?pageSize=10")["items"]
    assert sorted(v["name"] for v in versions) == ["1" * 12, "2" * 12]
    first = next(v for v in versions if v["name"] == "1" * 12)
    # It was promoted again.
    assert model["customProperties"]["promoted"]["string_value"] == first["id"]
    properties = {
        key: value.get("string_value", value.get("double_value"))
        for key, value in first["customProperties"].items()
    }
    assert properties == {
        "digest": "1" * 64,
        "uri": str(tmp_path / "models" / "1"),
        "task": task,
        "evaluation": str(tmp_path / "evaluations" / "1"),
        "metric.rmse": 0.5,
        "metric.delta1": 0.75,
        "parent.encoder": f"s3://b/encoders/e {'e' * 64}",
        "parent.encoder1": f"s3://b/encoders/e {'e' * 64}",
    }
    (artifact,) = get(url, f"model_versions/{first['id']}/artifacts")["items"]
    assert artifact["uri"] == properties["uri"]
    assert (artifact["modelFormatName"], artifact["modelFormatVersion"]) == ("clipmill", "1")


def test_a_version_is_found_by_its_id_and_its_digest(url, tmp_path):
    task = own_task()
    for digit in "12":
        promote(tmp_path, task, digit)
    registry = open_registry()
    newest, oldest = registry.versions(f"clipmill-{task}")
    assert (newest.digest, oldest.digest) == ("2" * 64, "1" * 64)
    for words in (oldest.version, "1" * 64, "1" * 8):
        assert registry.find(f"clipmill-{task}", words) == oldest
    assert oldest.uri == str(tmp_path / "models" / "1")
    assert oldest.labels == {
        "modelregistry.kubeflow.org/registered-model-id": oldest.model_id,
        "modelregistry.kubeflow.org/model-version-id": oldest.version,
        "clipmill.io/registered-model": f"clipmill-{task}",
        "clipmill.io/model-version": oldest.version,
    }
    for words in ("999999", "3" * 64, "1" * 7):
        with pytest.raises(NotFoundError) as error:
            registry.find(f"clipmill-{task}", words)
        assert f"{oldest.version} ({'1' * 12})" in error.value.expected
    with pytest.raises(NotFoundError, match="no version 1"):
        registry.find("clipmill-nothing", "1")


def test_versions_come_in_pages(tmp_path, monkeypatch):
    registry = Registry()
    registry.page = 2
    with serving(registry) as url:
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{url}/")
        for digit in "12345":
            promote(tmp_path, "depth", digit)
        found = KubeflowRegistry(url).versions("clipmill-depth")
        assert [v.digest[0] for v in found] == list("54321")
        writes = len(registry.writes)
        promote(tmp_path, "depth", "5")
        # What is there already is written no second time.
        assert len(registry.writes) == writes


def test_a_registration_that_broke_off_is_completed(tmp_path, monkeypatch):
    registry = Registry()
    with serving(registry) as url:
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{url}")
        promote(tmp_path, "depth", "1")
        registry.artifacts.clear()
        promote(tmp_path, "depth", "1")
        ((artifact,),) = registry.artifacts.values()
        assert artifact["uri"] == str(tmp_path / "models" / "1")


def test_a_token_is_sent_and_a_refusal_is_said(tmp_path, monkeypatch):
    with serving(Registry(token="secret")) as url:
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{url}")
        with pytest.raises(ServerError, match="401") as error:
            promote(tmp_path, "depth", "1")
        assert "run the same command again" in error.value.action
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        promote(tmp_path, "depth", "1")
        assert len(open_registry().versions("clipmill-depth")) == 1
    with pytest.raises(ServerError, match="can't be used"):
        promote(tmp_path, "depth", "1")


WRONG = [
    "kubeflow:",
    "kubeflow:model-registry:8080",
    "mlflow:http://a",
    "http://a",
    "kubeflow:ftp://a",
]


@pytest.mark.parametrize("text", WRONG)
def test_another_registry_is_refused(text, monkeypatch):
    monkeypatch.setenv(REGISTRY_VARIABLE, text)
    with pytest.raises(ConfigError, match="the registry was") as error:
        check_registry()
    assert "kubeflow:URL" in error.value.expected
    options = ["promote", "depth", "e", "--min-metric", "1", "--store", "s", "--registry", text]
    done = CliRunner().invoke(app, options)
    assert isinstance(done.exception, ConfigError | SystemExit)


def test_without_one_it_is_that_of_the_tracker(monkeypatch, tmp_path):
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    monkeypatch.delenv(TRACKING_VARIABLE, raising=False)
    assert open_registry() is None
    monkeypatch.setenv(TRACKING_VARIABLE, f"tensorboard:{tmp_path}")
    assert open_registry() is None
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(TRACKING_VARIABLE, f"mlflow:{tmp_path / 'mlruns'}")
    assert isinstance(open_registry(), MlflowRegistry)
    for digit in "12":
        promote(tmp_path, "depth", digit)
    newest, oldest = open_registry().versions("clipmill-depth")
    assert (newest.version, oldest.version) == ("2", "1")
    assert open_registry().find("clipmill-depth", "1" * 12) == oldest
    assert oldest.evaluation == str(tmp_path / "evaluations" / "1")
    assert oldest.uri == str(tmp_path / "models" / "1")
    assert oldest.labels == {
        "clipmill.io/registered-model": "clipmill-depth",
        "clipmill.io/model-version": "1",
    }
    with pytest.raises(NotFoundError, match="no version 7 in MLflow's registry"):
        open_registry().find("clipmill-depth", "7")

"""Promotion: who may serve, who replaces whom."""

import json
import os

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.cli.evaluate import EXIT_NOT_PROMOTED
from clipmill.errors import ConfigError, GateError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import (
    CheckpointMetadata,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from clipmill.storage import exists, join, read_json, write_json
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.promotion import PromotionConfig, promote, read_promotion

DEPTH = PromotionConfig(task="depth", threshold=1.0)
SEGMENTATION = PromotionConfig(task="segmentation", threshold=40.0)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path)


@pytest.fixture
def judged(store):
    """Write an evaluation as ``evaluate`` does."""

    def write(name, figure, task="depth", data="d"):
        uri = join(store, "evaluations", name)
        metric = {"depth": "rmse", "segmentation": "mIoU"}[task]
        write_json(
            join(uri, "evaluation.json"),
            {
                "format": 1,
                "kind": "evaluation",
                "digest": f"digest of {name}",
                "task": task,
                "metrics": {metric: figure},
                "num_samples": 0,
                "parents": [
                    {"role": "model", "uri": f"/models/{name}", "digest": f"model {name}"},
                    {"role": "data", "uri": "/data", "digest": data * 64},
                ],
                "summary": {},
            },
        )
        return uri

    return write


def serving(store, task="depth"):
    return read_promotion(join(store, "serving", task)).evaluation.model.uri


def test_the_best_serves(store, judged):
    uris = [judged("a", 0.8), judged("b", 0.5), judged("c", 0.9)]
    found = promote(DEPTH, uris, store)
    assert found.replaced
    assert found.uri == join(store, "serving", "depth")
    assert found.evaluation == read_evaluation(uris[1])
    assert serving(store) == "/models/b"


def test_more_is_better_where_the_metric_says_so(store, judged):
    uris = [judged("a", 45.0, "segmentation"), judged("b", 52.0, "segmentation")]
    promote(SEGMENTATION, uris, store)
    assert serving(store, "segmentation") == "/models/b"


@pytest.mark.parametrize(
    ("gate", "figure", "said"),
    [
        (DEPTH, 1.001, "the best rmse is 1.001\n  expected: at most 1 m"),
        (SEGMENTATION, 39.9, "the best mIoU is 39.9\n  expected: at least 40 %"),
    ],
)
def test_a_model_that_fails_the_gate(store, judged, gate, figure, said):
    with pytest.raises(GateError, match=said):
        promote(gate, [judged("a", figure, gate.task)], store)
    assert not exists(join(store, "serving", gate.task, "promotion.json"))


@pytest.mark.parametrize("gate", [DEPTH, SEGMENTATION])
def test_reaching_the_gate_is_enough(store, judged, gate):
    assert promote(gate, [judged("a", gate.threshold, gate.task)], store).replaced


@pytest.mark.parametrize(("figure", "replaces"), [(0.4, True), (0.5, False), (0.6, False)])
def test_only_a_better_one_replaces(store, judged, figure, replaces):
    promote(DEPTH, [judged("a", 0.5)], store)
    found = promote(DEPTH, [judged("b", figure)], store)
    assert found.replaced == replaces
    assert serving(store) == found.evaluation.model.uri == f"/models/{'b' if replaces else 'a'}"


def test_failing_the_gate_leaves_what_serves(store, judged):
    promote(DEPTH, [judged("a", 0.5)], store)
    found = promote(DEPTH, [judged("b", 1.5)], store)
    assert not found.replaced
    assert found.evaluation.model.uri == serving(store) == "/models/a"


def test_judged_on_other_data_the_gate_alone_decides(store, judged):
    promote(DEPTH, [judged("a", 0.5)], store)
    assert promote(DEPTH, [judged("b", 0.9, data="e")], store).replaced
    assert serving(store) == "/models/b"


def test_other_tasks_are_left_out(store, judged):
    uris = [judged("a", 0.001, "segmentation"), judged("b", 0.9)]
    assert promote(DEPTH, uris, store).evaluation.model.uri == "/models/b"
    with pytest.raises(
        ConfigError, match="no evaluation is of the task 'segmentation', but of depth"
    ):
        promote(SEGMENTATION, uris[1:], store)
    assert serving(store) == "/models/b"


def test_its_lineage(store, judged):
    uri = judged("a", 0.5)
    node = lineage(promote(DEPTH, [uri], store).uri)
    assert node.kind == "promotion"
    assert node.detail == {"rmse": "0.500 m"}
    assert [(p.role, p.uri) for p in node.parents] == [("model", "/models/a"), ("evaluation", uri)]
    assert read_json(join(store, "serving", "depth", "promotion.json"))["gate"] == DEPTH.to_json()


def test_a_task_that_there_is_none_of(store):
    with pytest.raises(ConfigError, match=r"one of .*depth"):
        promote(PromotionConfig(task="saliency", threshold=1), [], store)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (1.5, "the best rmse is 1.5, required is at most 1 m"),
        (0.6, "its rmse of 0.6 m is no better than 0.5 of the promoted model"),
        (0.5, "its rmse of 0.5 m is no better than 0.5 of the promoted model"),
    ],
)
def test_a_refusal_while_another_model_serves_is_seen(store, judged, figure, said):
    promote(DEPTH, [judged("a", 0.5)], store)
    arguments = ["promote", "depth", judged("b", figure), "--min-metric", "1", "--store", store]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == EXIT_NOT_PROMOTED == 3
    assert f"not promoted: {said}; /models/a is kept\n" in answer.stderr
    value = json.loads(answer.stdout)
    assert (value["uri"], value["is_promoted"]) == ("/models/a", False)


def test_promoting_again_what_serves_is_no_refusal(store, judged):
    for _ in range(2):
        uri = judged("a", 0.5)
        answer = CliRunner().invoke(
            app, ["promote", "depth", uri, "--min-metric", "1", "--store", store, "--json"]
        )
        assert (answer.exit_code, json.loads(answer.stdout)["is_promoted"]) == (0, True)


def test_a_higher_gate_refuses_what_serves(store, judged):
    uri = judged("a", 0.5)
    promote(DEPTH, [uri], store)
    arguments = ["promote", "depth", uri, "--min-metric", "0.4", "--store", store]
    answer = CliRunner().invoke(app, arguments)
    assert (answer.exit_code, answer.stdout) == (EXIT_NOT_PROMOTED, "/models/a\n")
    assert "not promoted: the best rmse is 0.5, required is at most 0.4 m" in answer.stderr


def test_a_relative_store_is_read_from_any_folder(tmp_path, judged, monkeypatch):
    judged("a", 0.5)
    monkeypatch.chdir(tmp_path.parent)
    store = tmp_path.name
    assert not os.path.isabs(store)  # noqa: PTH117 - the premise
    uri = promote(DEPTH, [f"{store}/evaluations/a"], store).uri
    monkeypatch.chdir("/")
    record = read_json(join(uri, "promotion.json"))
    uris = [record["evaluation"], *(parent["uri"] for parent in record["parents"])]
    assert all(one.startswith("/") for one in uris)
    assert read_promotion(uri).evaluation.metrics == {"rmse": 0.5}
    evaluation = lineage(uri).parents[1]
    assert (evaluation.kind, evaluation.detail) == ("evaluation", {})


def test_a_promotion_stands_for_its_model(tmp_path, store, judged):
    import torch

    model = str(tmp_path / "models" / "a")
    metadata = CheckpointMetadata(kind="task", architecture={"task": "depth"}, recipe={})
    saved = save_checkpoint(model, metadata, {"w": torch.ones(2)})
    path = tmp_path / "evaluations" / "a" / "evaluation.json"
    uri = judged("a", 0.5)
    path.write_text(path.read_text().replace('"/models/a"', json.dumps(model)))
    promotion = promote(DEPTH, [uri], store).uri
    assert read_metadata(promotion) == read_metadata(model)
    assert read_metadata(promotion).digest == saved.digest
    assert load_checkpoint(promotion)[1]["w"].tolist() == [1, 1]

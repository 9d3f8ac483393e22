"""The strict checks find what they are for."""

import copy

import pytest

from helpers.strict_schemas import VERSIONS, findings

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "a"},
    "spec": {"ports": [{"port": 80}]},
}
ENDPOINT = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "a"},
    "spec": {"predictor": {"minReplicas": 1, "model": {"modelFormat": {"name": "x"}}}},
}


@pytest.mark.parametrize("good", [SERVICE, ENDPOINT])
def test_a_misspelt_field_is_found_and_the_right_one_isnt(good):
    assert findings(good) == []
    bad = copy.deepcopy(good)
    bad["spec"]["portz"] = []
    assert any("portz" in finding for finding in findings(bad))
    bad = copy.deepcopy(good)
    bad["metadata"]["label"] = {}
    assert any("metadata.label" in finding for finding in findings(bad))


def test_a_wrong_type_deep_inside_is_found():
    bad = copy.deepcopy(ENDPOINT)
    bad["spec"]["predictor"]["minReplicas"] = "one"
    assert any("minReplicas" in finding for finding in findings(bad))
    bad = copy.deepcopy(SERVICE)
    bad["spec"]["ports"][0]["port"] = "http"
    assert len(findings(bad)) == len(VERSIONS)


def test_a_kind_without_a_definition_is_found():
    assert findings({**ENDPOINT, "kind": "Inference"}) != []


def test_every_version_from_the_oldest_is_asked():
    assert VERSIONS[0].startswith("1.31.")
    assert len(VERSIONS) >= 5

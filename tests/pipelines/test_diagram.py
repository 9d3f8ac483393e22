"""Diagrams of pipelines: every task is there, and shortcuts are left out."""

import itertools
import re

import pytest
import yaml
from clipmill.pipelines.compile import DIAGRAMS, MANIFESTS
from clipmill.pipelines.diagram import diagram, with_diagrams, without_shortcuts
from clipmill.pipelines.registry import PIPELINES
from hypothesis import given
from hypothesis import strategies as st

NODES = "abcdefgh"
EDGES = st.sets(st.sampled_from(list(itertools.combinations(NODES, 2))))


def reachable(edges):
    pairs = set(edges)
    for _ in NODES:
        pairs |= {(a, d) for a, b in pairs for c, d in edges if b == c}
    return pairs


@given(EDGES)
def test_only_shortcuts_are_left_out(edges):
    kept = without_shortcuts(NODES, sorted(edges))
    assert set(kept) <= edges
    assert reachable(kept) == reachable(edges)
    for edge in kept:
        assert edge not in reachable(set(kept) - {edge})


@pytest.mark.parametrize("name", PIPELINES)
def test_every_task_is_in_its_diagram_and_the_page_has_it(name):
    (spec, platform) = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())
    text = diagram(spec, platform)
    assert f"```mermaid\n%% {name}\n{text}```" in DIAGRAMS.read_text()
    boxes = re.findall(r'^ *\S+\["(.+)"\](?::::gpu)?$', text, re.MULTILINE)
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    tasks = [
        task["taskInfo"]["name"]
        for dag in dags
        for task in dag["tasks"].values()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    ]
    assert sorted(tasks) == sorted(set(tasks)), "two tasks of one name"
    assert set(tasks) <= set(boxes)
    assert text.count("subgraph ") == len(re.findall(r"^ *end$", text, re.MULTILINE))


def test_a_block_of_an_unknown_pipeline_is_an_error():
    with pytest.raises(KeyError, match="gone"):
        with_diagrams("```mermaid\n%% gone\n```", {"here": "flowchart TD\n"})

"""Drawings of graphs: everything is there, nothing overlaps, all lines point down."""

import itertools
from xml.etree import ElementTree as ET

import pytest
import yaml
from clipmill.pipelines.compile import DRAWINGS, MANIFESTS
from clipmill.pipelines.drawing import layered
from clipmill.pipelines.registry import PIPELINES
from hypothesis import given
from hypothesis import strategies as st

NODES = "abcdefgh"
SIZES = st.tuples(st.integers(5, 100), st.integers(5, 100))
GRAPHS = st.tuples(
    st.lists(SIZES, min_size=8, max_size=8),
    st.sets(st.sampled_from(list(itertools.combinations(NODES, 2)))),
)


@given(GRAPHS)
def test_boxes_lie_apart_and_lines_go_down_between_their_edges(graph):
    sizes = dict(zip(NODES, graph[0], strict=True))
    placed = layered(sizes, sorted(graph[1]))
    boxes = {n: (*placed.corners[n], *sizes[n]) for n in NODES}
    for (x, y, w, h), (u, v, a, b) in itertools.combinations(boxes.values(), 2):
        assert x + w <= u + 1e-6 or u + a <= x + 1e-6 or y + h <= v + 1e-6 or v + b <= y + 1e-6
    for x, y, w, h in boxes.values():
        assert x >= -1e-6
        assert y >= -1e-6
        assert x + w <= placed.width + 1e-6
        assert y + h <= placed.height + 1e-6
    ends = {(round(x + w / 2, 3), round(y + h, 3)): n for n, (x, y, w, h) in boxes.items()}
    starts = {(round(x + w / 2, 3), round(y, 3)): n for n, (x, y, w, h) in boxes.items()}
    drawn = {(ends[rounded(line[0])], starts[rounded(line[-1])]) for line in placed.lines}
    assert drawn <= graph[1]
    assert reachable(drawn) == reachable(graph[1])
    for line in placed.lines:
        assert all(above[1] <= below[1] + 1e-6 for above, below in itertools.pairwise(line))


def rounded(point):
    return tuple(round(value, 3) for value in point)


def reachable(edges):
    found = set(edges)
    for _ in NODES:
        found |= {(a, d) for a, b in found for c, d in edges if b == c}
    return found


def test_a_shortcut_is_left_out_and_a_long_line_takes_its_own_way():
    size = (100.0, 40.0)
    placed = layered(dict.fromkeys("abcd", size), [("a", "b"), ("b", "c"), ("a", "c")])
    assert len(placed.lines) == 2
    # e, two layers below d, has to pass b.
    edges = [("a", "b"), ("b", "c"), ("c", "e"), ("d", "e")]
    placed = layered(dict.fromkeys("abcde", size), edges)
    (line,) = (line for line in placed.lines if len(line) > 2)
    left, top = placed.corners["b"]
    assert [y for _, y in line][1:3] == [top, top + size[1]]
    assert not left <= line[1][0] <= left + size[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_task_is_in_its_drawing(name):
    tree = ET.fromstring((DRAWINGS / f"{name}.svg").read_text())
    words = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    (spec, _) = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    tasks = [
        task["taskInfo"]["name"]
        for dag in dags
        for task in dag["tasks"].values()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    ]
    assert sorted(tasks) == sorted(set(tasks)), "two tasks of one name"
    assert set(tasks) <= set(words)

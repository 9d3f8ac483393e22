"""The tree of what an artifact was made from."""

from pathlib import Path
from typing import Any

import pytest

from clipmill.errors import ArtifactError, NotFoundError
from clipmill.lineage import Node, Parent, lineage, render
from clipmill.storage import join, split_uri, write_bytes, write_json


def _write(
    uri: str, name: str, *parents: Parent, digest: str = "", summary: dict[str, str] | None = None
) -> Parent:
    """Write an artifact and return it as a parent of whatever is made from it."""
    kind = name.removesuffix(".json")
    digest = digest or f"digest-of-{uri.rpartition('/')[2]}"
    value = {"kind": kind, "digest": digest, "parents": [parent.to_json() for parent in parents]}
    write_json(join(uri, name), value | ({"summary": summary} if summary else {}))
    return Parent(role=kind, uri=uri, digest=digest)


def test_the_tree_goes_down_to_the_sources(root_uri: str) -> None:
    write_bytes(join(root_uri, "raw", "images", "1.jpg"), b"x")
    write_bytes(join(root_uri, "list.csv"), b"x")
    raw = Parent(role="images", uri=join(root_uri, "raw"), digest="d1")
    listed = Parent(role="list", uri=join(root_uri, "list.csv"), digest="d2")
    source = _write(join(root_uri, "source"), "source.json", raw, listed)
    dataset = _write(
        join(root_uri, "dataset"), "dataset.json", source, summary={"samples": "12", "shards": "3"}
    )
    layer = _write(join(root_uri, "layer"), "layer.json", dataset)
    _write(join(root_uri, "model"), "model.json", dataset, layer)

    tree = lineage(join(root_uri, "model"))
    source_node = Node(
        role="source",
        uri=source.uri,
        digest="digest-of-source",
        kind="source",
        parents=(
            Node(role="images", uri=raw.uri, digest="d1", kind="folder"),
            Node(role="list", uri=listed.uri, digest="d2", kind="file"),
        ),
    )
    dataset_node = Node(
        role="dataset",
        uri=dataset.uri,
        digest="digest-of-dataset",
        kind="dataset",
        detail={"samples": "12", "shards": "3"},
        parents=(source_node,),
    )
    layer_node = Node(
        role="layer",
        uri=layer.uri,
        digest="digest-of-layer",
        kind="layer",
        parents=(dataset_node,),
    )
    assert tree == Node(
        role="",
        uri=join(root_uri, "model"),
        digest="digest-of-model",
        kind="model",
        parents=(dataset_node, layer_node),
    )


def test_render_draws_the_tree() -> None:
    leaf = Node(role="source", uri="/s", digest="0123456789abcdef", kind="folder")
    dataset = Node(
        role="dataset",
        uri="/d",
        digest="d" * 64,
        kind="dataset",
        detail={"samples": "12"},
        parents=(leaf,),
    )
    twin = Node(role="dataset", uri="/e", digest="e" * 64, kind="dataset", detail={"problem": "!"})
    root = Node(
        role="",
        uri="/m",
        digest="m" * 64,
        kind="model",
        detail={"steps": "7"},
        parents=(dataset, leaf, twin),
    )
    assert render(root).splitlines() == [
        "model /m (mmmmmmmmmmmm)",
        "│ steps: 7",
        "├─ dataset: dataset /d (dddddddddddd)",
        "│  │ samples: 12",
        "│  └─ source: folder /s (0123456789ab)",
        "├─ source: folder /s (0123456789ab)",
        "└─ dataset: dataset /e (eeeeeeeeeeee)",
        "     problem: !",
    ]


def test_a_parent_that_is_gone_is_shown(root_uri: str) -> None:
    dataset = _write(join(root_uri, "dataset"), "dataset.json")
    _write(join(root_uri, "model"), "model.json", dataset)
    store, key = split_uri(join(root_uri, "dataset"))
    store.delete(f"{key}/dataset.json")
    (node,) = lineage(join(root_uri, "model")).parents
    assert (node.kind, node.uri, node.digest) == ("unknown", dataset.uri, dataset.digest)
    assert "nothing lies at" in node.detail["problem"]


def test_a_parent_that_changed_is_shown_with_its_own_parents(root_uri: str) -> None:
    source = _write(join(root_uri, "source"), "source.json")
    dataset = _write(join(root_uri, "dataset"), "dataset.json", source)
    _write(join(root_uri, "model"), "model.json", dataset)
    _write(join(root_uri, "dataset"), "dataset.json", source, digest="another")
    (node,) = lineage(join(root_uri, "model")).parents
    assert node.digest == dataset.digest
    assert "another" in node.detail["problem"]
    assert [parent.role for parent in node.parents] == ["source"]


def test_cycles_are_cut(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    _write(first, "dataset.json", Parent(role="b", uri=second, digest="digest-of-second"))
    _write(second, "dataset.json", Parent(role="a", uri=first, digest="digest-of-first"))
    tree = lineage(first)
    (again,) = tree.parents[0].parents
    assert again.uri == first
    assert "ancestors" in again.detail["problem"]
    assert again.parents == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "isn't JSON"),
        (b"\xff", "isn't JSON"),
        (b"[]", "isn't an artifact's description"),
        (b'{"kind": "x", "digest": 3, "parents": []}', "isn't an artifact's description"),
        (b'{"kind": "x", "digest": "d"}', "isn't an artifact's description"),
        (b'{"kind": "x", "digest": "d", "parents": [{"role": "r"}]}', "isn't a parent"),
        (b'{"kind": "x", "digest": "d", "parents": [7]}', "isn't a parent"),
        (b'{"kind": "x", "digest": "d", "parents": [], "summary": []}', "artifact's description"),
    ],
)
def test_a_malformed_parent_is_shown_and_a_malformed_root_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    bad = str(tmp_path / "bad")
    write_bytes(join(bad, "model.json"), content)
    _write(str(tmp_path / "child"), "report.json", Parent(role="model", uri=bad, digest="d"))
    (node,) = lineage(str(tmp_path / "child")).parents
    assert problem in node.detail["problem"]
    with pytest.raises(ArtifactError, match=problem):
        lineage(bad)


def test_a_folder_with_two_descriptions_is_a_problem(tmp_path: Path) -> None:
    _write(str(tmp_path), "model.json")
    _write(str(tmp_path), "report.json")
    with pytest.raises(ArtifactError, match=r"holds model\.json and report\.json"):
        lineage(str(tmp_path))


@pytest.mark.parametrize("uri", ["https://host/file", "s3://UPPER/x", "", "s3://bucket-only"])
def test_a_parent_elsewhere_is_shown_as_not_checked(
    tmp_path: Path, s3: dict[str, str], uri: str
) -> None:
    _write(str(tmp_path), "source.json", Parent(role="web", uri=uri, digest="d"))
    (node,) = lineage(str(tmp_path)).parents
    assert (node.kind, node.uri) == ("unknown", uri)
    assert node.detail["problem"]


def test_a_source_that_says_its_kind_is_found_where_it_lies(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "pairs" / "a.csv"), b"image,caption")
    _write(str(tmp_path / "drawn"), "source.json")
    for spec, kind in (
        (f"folder:{tmp_path}/pairs", "folder"),
        (f"csv:{tmp_path}/pairs/a.csv?image=image&images=/x", "file"),
        (f"folder:{tmp_path}/drawn", "source"),
        (f"coco:{tmp_path}/none.json", "unknown"),
    ):
        child = str(tmp_path / "dataset")
        _write(child, "dataset.json", Parent(role="source", uri=spec, digest="digest-of-drawn"))
        (node,) = lineage(child).parents
        assert (node.uri, node.kind) == (spec, kind)
        assert ("problem" in node.detail) == (kind == "unknown")


def test_what_is_no_artifact_has_no_lineage(root_uri: str) -> None:
    write_bytes(join(root_uri, "folder", "file"), b"x")
    for uri in (join(root_uri, "folder"), join(root_uri, "folder", "file"), join(root_uri, "no")):
        with pytest.raises(NotFoundError, match="no artifact"):
            lineage(uri)


def test_a_parent_goes_through_json() -> None:
    parent = Parent(role="encoder", uri="s3://b/m", digest="d")
    assert Parent.from_json(parent.to_json()) == parent
    values: list[Any] = [{}, {"role": "r", "uri": "u", "digest": 1}, None, []]
    for value in values:
        with pytest.raises(ArtifactError, match="isn't a parent"):
            Parent.from_json(value)

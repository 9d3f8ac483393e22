"""What Dataset.open refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.data.dataset import Dataset
from clipmill.errors import ArtifactError
from clipmill.lineage import lineage

MakeDataset = Callable[..., Dataset]


def edit(dataset: Dataset, **values: object) -> str:
    path = Path(dataset.uri) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return dataset.uri


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no dataset"):
        Dataset.open(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ({"kind": "model"}, "holds kind 'model'"),
        ({"format": 99}, "in format 99"),
        ({"shards": []}, "doesn't match its own digest"),
        ({"shards": [{"name": "00000.tar"}]}, "lacks a part"),
        ({"layers": None}, "lacks a part"),
    ],
)
def test_foreign_or_damaged(
    make_dataset: MakeDataset, values: dict[str, object], trouble: str
) -> None:
    uri = edit(make_dataset(), **values)
    with pytest.raises(ArtifactError, match=trouble):
        Dataset.open(uri)


def test_sidecar_of_another_shard(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    shards = Path(dataset.uri) / "shards"
    (shards / "00000.json").write_bytes((shards / "00001.json").read_bytes())
    with pytest.raises(ArtifactError, match="describes a different shard"):
        dataset.uids(0)


def test_relative_uri_becomes_absolute(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    monkeypatch.chdir(Path(dataset.uri).parent)
    assert Dataset.open(Path(dataset.uri).name).uri == dataset.uri


def test_layers_leave_the_lineage_of_earlier_work_intact(
    make_dataset: MakeDataset, add_captions: Callable[[Dataset, str], Dataset]
) -> None:
    dataset = make_dataset()
    first = add_captions(dataset, "captions/first")
    second = add_captions(first, "captions/second")
    assert dataset.digest == first.digest == second.digest
    node = lineage(dataset.layer_uri("captions/first"))
    assert [parent.kind for parent in node.parents] == ["dataset"]
    assert "problem" not in node.parents[0].detail
    assert node.parents[0].parents[0].role == "source"

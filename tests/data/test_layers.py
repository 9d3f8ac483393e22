"""Layers: their bytes, their commits, and their misuse."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data import layers as layers_module
from clipmill.data.dataset import Dataset
from clipmill.data.layers import (
    commit_layer,
    has_layer_shard,
    layer_schema,
    read_layer,
    write_layer_shard,
)
from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Parent, lineage
from helpers.bare_dataset import add_layer, bare_dataset

MakeDataset = Callable[..., Dataset]
CaptionTable = Callable[[Dataset, int], pa.Table]
AddCaptions = Callable[[Dataset, str], Dataset]
LAYER = "captions/test-1"


def test_rows_come_back(
    tmp_path: Path, make_dataset: MakeDataset, caption_table: CaptionTable
) -> None:
    dataset = make_dataset()
    for index in range(len(dataset.shards)):
        assert not has_layer_shard(dataset, LAYER, index)
        write_layer_shard(dataset, LAYER, index, caption_table(dataset, index))
        assert has_layer_shard(dataset, LAYER, index)
    captioner = Parent(role="captioner", uri="model", digest="abc")
    committed = commit_layer(dataset, LAYER, parents=(captioner,), detail={"method": "beam"})
    assert list(committed.layers) == [LAYER]
    assert Dataset.open(dataset.uri) == committed
    for index in range(len(dataset.shards)):
        table = read_layer(committed, LAYER, index, tmp_path / "cache")
        assert table.equals(caption_table(dataset, index))
        # Any Parquet reader finds it under its plain name.
        path = Path(dataset.uri) / "layers" / LAYER / f"{index:05d}.parquet"
        assert pq.read_table(path).equals(table)
    node = lineage(dataset.layer_uri(LAYER))
    assert node.digest == committed.layers[LAYER].digest
    assert node.detail["method"] == "beam"
    assert [parent.role for parent in node.parents] == ["dataset", "captioner"]


def test_bytes_follow_the_rows_alone(
    make_dataset: MakeDataset, caption_table: CaptionTable
) -> None:
    dataset = make_dataset()
    table = caption_table(dataset, 0)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    noted = chunked.replace_schema_metadata({"made": "2020-01-01"})
    path = Path(dataset.uri) / "layers" / LAYER / "00000.parquet"
    files = []
    for rows in (table, noted):
        write_layer_shard(dataset, LAYER, 0, rows)
        files.append(path.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.drop_columns("uid"),
        lambda table: table.slice(1),
        lambda table: table.take(list(range(len(table)))[::-1]),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    ],
    ids=["no uid", "a row too few", "another order", "a row too many"],
)
def test_foreign_rows_are_refused(
    make_dataset: MakeDataset,
    caption_table: CaptionTable,
    spoil: Callable[[pa.Table], pa.Table],
) -> None:
    dataset = make_dataset()
    with pytest.raises(ArtifactError, match="doesn't have the shard's uids"):
        write_layer_shard(dataset, LAYER, 0, spoil(caption_table(dataset, 0)))
    assert not has_layer_shard(dataset, LAYER, 0)


@pytest.mark.parametrize("captions", [None, [], [" "], ["a cat", ""], ["a cat", None]])
def test_captions_layer_needs_captions(
    make_dataset: MakeDataset, captions: list[str | None] | None
) -> None:
    dataset = make_dataset()
    uids = dataset.uids(0)
    column = pa.array([["a dog"]] * (len(uids) - 1) + [captions], pa.list_(pa.string()))
    table = pa.table({"uid": uids, "captions": column})
    with pytest.raises(ArtifactError, match="row 3 of shard 0"):
        write_layer_shard(dataset, LAYER, 0, table)
    with pytest.raises(ArtifactError, match="column captions of layer captions/test-1 was missing"):
        write_layer_shard(dataset, LAYER, 0, table.drop_columns("captions"))
    write_layer_shard(dataset, "score/test", 0, table)


@pytest.mark.parametrize("name", ["", "captions", "captions/", "../x", "captions/../x", "a/b c"])
def test_names(make_dataset: MakeDataset, caption_table: CaptionTable, name: str) -> None:
    dataset = make_dataset()
    with pytest.raises(ConfigError, match="is not the name of a layer"):
        write_layer_shard(dataset, name, 0, caption_table(dataset, 0))


def test_commit_needs_every_shard(make_dataset: MakeDataset, caption_table: CaptionTable) -> None:
    dataset = make_dataset()
    write_layer_shard(dataset, LAYER, 1, caption_table(dataset, 1))
    with pytest.raises(ArtifactError, match="lacks shards 0, 2, 3, 4, 5"):
        commit_layer(dataset, LAYER, parents=(), detail={})


def test_cut_file_counts_as_missing(make_dataset: MakeDataset, caption_table: CaptionTable) -> None:
    dataset = make_dataset()
    write_layer_shard(dataset, LAYER, 0, caption_table(dataset, 0))
    path = Path(dataset.uri) / "layers" / LAYER / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert not has_layer_shard(dataset, LAYER, 0)


def test_committed_layer_stays_as_it_is(
    make_dataset: MakeDataset, caption_table: CaptionTable, add_captions: AddCaptions
) -> None:
    dataset = add_captions(make_dataset(), LAYER)
    table = caption_table(dataset, 0)
    write_layer_shard(dataset, LAYER, 0, table)
    others = pa.table({"uid": table["uid"], "captions": [["another"]] * len(table)})
    with pytest.raises(ArtifactError, match="is committed, and shard 0 of it differs"):
        write_layer_shard(dataset, LAYER, 0, others)
    assert commit_layer(dataset, LAYER, parents=(), detail={"other": "words"}) == dataset


def test_commit_during_another_commit(
    make_dataset: MakeDataset, caption_table: CaptionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(count=4)
    names = ["captions/inner", "captions/outer"]
    for name in names:
        write_layer_shard(dataset, name, 0, caption_table(dataset, 0))
    real = layers_module.write_json

    def write_after_another_commit(uri: str, value: object) -> None:
        if uri.endswith("dataset.json"):
            monkeypatch.setattr(layers_module, "write_json", real)
            commit_layer(dataset, "captions/inner", parents=(), detail={})
        real(uri, value)

    monkeypatch.setattr(layers_module, "write_json", write_after_another_commit)
    committed = commit_layer(dataset, "captions/outer", parents=(), detail={})
    assert sorted(committed.layers) == names
    assert Dataset.open(dataset.uri) == committed


def test_reading_what_is_not_there(
    tmp_path: Path, make_dataset: MakeDataset, add_captions: AddCaptions
) -> None:
    dataset = add_captions(make_dataset(), LAYER)
    with pytest.raises(ArtifactError, match="has no layer captions/other"):
        read_layer(dataset, "captions/other", 0, tmp_path / "cache")


@pytest.mark.parametrize("file", ["00000.parquet", "layer.json"])
def test_reading_what_was_changed(
    tmp_path: Path, make_dataset: MakeDataset, add_captions: AddCaptions, file: str
) -> None:
    dataset = add_captions(make_dataset(), LAYER)
    path = Path(dataset.uri) / "layers" / LAYER / file
    data = path.read_bytes()
    if file == "layer.json":
        path.write_bytes(data.replace(b'"num_rows": 4', b'"num_rows": 5'))
    else:
        path.write_bytes(data[:40] + b"\xff" + data[41:])
    with pytest.raises(ArtifactError):
        read_layer(dataset, LAYER, 0, tmp_path / "cache")


@pytest.mark.parametrize(
    ("sizes", "label"),
    [((3, 3), "u"), ((3, 2), "v"), ((3,), "u"), ((2, 3), "u")],
    ids=["another row count", "other uids", "a shard too few", "another cut"],
)
def test_a_layer_of_other_samples_cannot_be_attached(
    tmp_path: Path, sizes: tuple[int, ...], label: str
) -> None:
    """Not even as whole folders copied from there."""
    dataset = bare_dataset(tmp_path / "here", (3, 2))
    other = bare_dataset(tmp_path / "there", sizes, label)
    other = add_layer(other, "score/x", {"x": range(sum(sizes))})
    shutil.copytree(other.layer_uri("score/x"), dataset.layer_uri("score/x"))
    with pytest.raises(ArtifactError, match="describes other samples than"):
        commit_layer(dataset, "score/x", parents=(), detail={})
    assert not Dataset.open(dataset.uri).layers


def test_a_layer_of_the_same_samples_can_be_attached(tmp_path: Path) -> None:
    dataset, other = (bare_dataset(tmp_path / name, (3, 2)) for name in ("here", "there"))
    other = add_layer(other, "score/x", {"x": range(5)})
    shutil.copytree(other.layer_uri("score/x"), dataset.layer_uri("score/x"))
    attached = commit_layer(dataset, "score/x", parents=(), detail={})
    assert attached.layers == other.layers
    assert read_layer(attached, "score/x", 1, tmp_path / "cache")["x"].to_pylist() == [3, 4]


def test_rows_of_another_shard_count_as_missing(tmp_path: Path) -> None:
    """What was computed before a dataset was made anew, in the same place."""
    dataset = bare_dataset(tmp_path / "d", (2, 2))
    uids = dataset.uids(0)
    write_layer_shard(dataset, "score/x", 0, pa.table({"uid": uids, "x": [0, 1]}))
    layers = Path(dataset.uri) / "layers"
    layers.rename(tmp_path / "layers")
    shutil.rmtree(dataset.uri)
    anew = bare_dataset(tmp_path / "d", (2, 2), label="v")
    (tmp_path / "layers").rename(layers)
    assert not has_layer_shard(anew, "score/x", 0)
    with pytest.raises(ArtifactError, match="lacks shards 0, 1"):
        commit_layer(anew, "score/x", parents=(), detail={})


def test_columns_are_read_alone(tmp_path: Path) -> None:
    dataset = bare_dataset(tmp_path / "d", (2,))
    columns = {"captions/a": [[1.0], [2.0, 3.0]], "captions/a.b": [[4.0], []], "y": [1, 2]}
    dataset = add_layer(dataset, "score/x", columns)
    read = [
        read_layer(dataset, "score/x", 0, tmp_path / "cache", columns=wanted).to_pydict()
        for wanted in (["captions/a.b"], ["y"], ["y", "uid"])
    ]
    assert read[0] == {"captions/a.b": [[4.0], []]}
    assert read[1] == {"y": [1, 2]}
    assert read[2] == {"y": [1, 2], "uid": ["u0", "u1"]}
    assert layer_schema(dataset, "score/x", tmp_path / "cache").names == ["uid", *columns]

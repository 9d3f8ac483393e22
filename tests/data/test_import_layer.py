"""Tables of other tools, joined by uid, key or url."""

import csv
import gzip
import io
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.data import import_layer as module
from clipmill.data.dataset import Dataset
from clipmill.data.import_layer import ImportConfig, import_layer
from clipmill.data.join import JoinCounts, SampleIndex
from clipmill.data.layers import read_layer
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ArtifactError, ConfigError, SourceError
from clipmill.lineage import lineage
from clipmill.pretrain.config import DistillationConfig
from clipmill.pretrain.teacher import teacher_parent
from clipmill.storage import open_store
from helpers.bare_dataset import add_layer, bare_dataset
from helpers.sources import jpeg, write_tar

FILL = ImportConfig(on_missing="fill")


def silent(done, total, words):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def rows_of(dataset, layer, tmp_path):
    opened = Dataset.open(dataset.uri)
    return [
        row
        for index in range(len(opened.shards))
        for row in read_layer(opened, layer, index, tmp_path / "cache").to_pylist()
    ]


def write(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        options = pa_csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pa_csv.write_csv(table, path, options)
    return str(path)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(sum),
    st.sampled_from([".parquet", ".csv", ".tsv"]),
    st.integers(0, 10**6),
    st.integers(1, 3),
)
def test_rows_find_their_samples(tmp_path_factory, sizes, suffix, seed, num_files):
    folder = tmp_path_factory.mktemp("import")
    random = np.random.default_rng(seed)
    dataset = bare_dataset(folder / "d", sizes)
    given_ = random.permutation(sum(sizes) + 3)
    # Of a table that begins with unknown uids, the source's are read, which this dataset lacks.
    given_ = np.roll(given_, -int(np.argmin(given_)))
    values = random.random(len(given_)).round(3)
    parts = np.array_split(np.arange(len(given_)), num_files)
    files = []
    for number, part in enumerate(parts):
        table = pa.table({"uid": [f"u{n}" for n in given_[part]], "aesthetic": values[part]})
        files.append(write(folder / f"{number}{suffix}", table))
    layer = "score/other"
    counts = import_layer(ImportConfig(), dataset.uri, layer, files, report=silent)
    assert counts == JoinCounts(matched=sum(sizes), missing=0, unknown=3, duplicate=0)
    expected = [
        {"uid": f"u{n}", "aesthetic": values[list(given_).index(n)]} for n in range(sum(sizes))
    ]
    assert rows_of(dataset, layer, folder) == expected
    node = lineage(dataset.layer_uri(layer))
    assert (node.detail["missing"], node.detail["unknown"]) == ("0", "3")
    assert [p.role for p in node.parents] == ["dataset", *["import"] * num_files]


def test_many_ranges_of_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_RANGES", 3)
    dataset = bare_dataset(tmp_path / "d", (2,) * 11)
    file = write(
        tmp_path / "t.parquet",
        pa.table({"uid": [f"u{n}" for n in range(21, -1, -1)], "x": range(22)}),
    )
    import_layer(ImportConfig(), dataset.uri, "score/x", [file], report=silent)
    assert [row["x"] for row in rows_of(dataset, "score/x", tmp_path)] == list(range(21, -1, -1))


def test_missing_samples(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (3, 2))
    file = write(tmp_path / "t.parquet", pa.table({"uid": ["u4", "u1"], "x": [4.0, 1.0]}))
    with pytest.raises(ArtifactError, match="3 of 5 samples aren't in the table, such as u0, u2"):
        import_layer(ImportConfig(), dataset.uri, "score/x", [file], report=silent)
    assert not list((tmp_path / "d").glob("layers/**/*.parquet"))
    import_layer(FILL, dataset.uri, "score/x", [file], report=silent)
    assert [row["x"] for row in rows_of(dataset, "score/x", tmp_path)] == [None, 1, None, None, 4]
    assert lineage(dataset.layer_uri("score/x")).detail["missing"] == "3"


def test_twice_is_once(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (3, 2))
    table = pa.table({"uid": [f"u{n}" for n in range(5)], "x": range(5)})
    file = write(tmp_path / "t.parquet", table)
    for _ in range(2):
        import_layer(ImportConfig(), dataset.uri, "score/x", [file], report=silent)
    other = write(tmp_path / "o.parquet", table.set_column(1, "x", pa.array(range(1, 6))))
    with pytest.raises(ArtifactError, match="is committed, and shard 0 of it differs"):
        import_layer(ImportConfig(), dataset.uri, "score/x", [other], report=silent)


def test_names_are_chosen(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (2,), label="")
    table = pa.table({"key": ["1", "0"], "a": [1.5, 0.5], "b": ["x", "y"]})
    file = write(tmp_path / "t.csv", table)
    config = ImportConfig(uid_column="key", columns={"real": "a"})
    import_layer(config, dataset.uri, "score/x", [file], report=silent)
    assert rows_of(dataset, "score/x", tmp_path) == [
        {"uid": "0", "real": 0.5},
        {"uid": "1", "real": 1.5},
    ]


def test_captions_come_in_either_form(make_dataset, tmp_path):
    """One a row, or a list; a missing one is the real one, which ``fallback`` says."""
    dataset = make_dataset(count=6)
    uids = [uid for index in range(2) for uid in dataset.uids(index)]
    with read_shard(dataset, 1, tmp_path / "cache") as reader:
        real = [reader.caption(row) for row in range(2)]
    one = write(tmp_path / "1.csv", pa.table({"uid": uids[:4], "captions": ["a", "b", "c", "d"]}))
    import_layer(FILL, dataset.uri, "captions/one", [one], report=silent)
    rows = rows_of(dataset, "captions/one", tmp_path)
    assert [row["captions"] for row in rows] == [["a"], ["b"], ["c"], ["d"], [real[0]], [real[1]]]
    assert [row["fallback"] for row in rows] == [False] * 4 + [True] * 2
    lists = [["a"], ["b", "c"], ["d"], ["e"], None, ["f"]]
    several = pa.table({"uid": uids, "captions": lists, "fallback": [True] + [False] * 5})
    file = write(tmp_path / "2.parquet", several)
    import_layer(FILL, dataset.uri, "captions/two", [file], report=silent)
    rows = rows_of(dataset, "captions/two", tmp_path)
    assert [row["captions"] for row in rows] == [*lists[:4], [real[0]], lists[5]]
    assert [row["fallback"] for row in rows] == [True, False, False, False, True, False]


def test_a_remote_table(s3, tmp_path):
    del s3
    bucket = f"import-{os.getpid()}"
    store = open_store(f"s3://{bucket}/tables")
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"uid": ["u1", "u0"], "x": [1, 0]}), path)
    store.put_file("t.parquet", path)
    dataset = bare_dataset(tmp_path / "d", (2,))
    files = [f"s3://{bucket}/tables/t.parquet"]
    import_layer(ImportConfig(), dataset.uri, "score/x", files, report=silent)
    assert [row["x"] for row in rows_of(dataset, "score/x", tmp_path)] == [0, 1]


def tables(tmp_path):
    """Names of tables, each wrong in its way."""
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "table.xls").write_text("x")
    return {
        "number": write(tmp_path / "n.parquet", pa.table({"uid": [0, 1], "x": [0, 1]})),
        "other": write(tmp_path / "other.parquet", pa.table({"key": ["u0"]})),
        "text": str(tmp_path / "text.parquet"),
        "kind": str(tmp_path / "table.xls"),
        "absent": str(tmp_path / "absent.csv"),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number", "has type int64"),
        ("other", "has no column uid"),
        ("text", "can't be read"),
        ("kind", "is a table of unknown kind"),
        ("absent", "there is no file at .*absent.csv"),
    ],
)
def test_tables_that_are_no_good(tmp_path, name, words):
    dataset = bare_dataset(tmp_path / "d", (2,))
    with pytest.raises(SourceError, match=words):
        import_layer(FILL, dataset.uri, "score/x", [tables(tmp_path)[name]], report=silent)


def test_first_row_of_a_sample_counts(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (2,))
    table = pa.table({"uid": ["u1", None, "u1", "u0", "u2"], "x": [1, 2, 3, 4, 5]})
    files = [write(tmp_path / "a.parquet", table), write(tmp_path / "b.parquet", table)]
    counts = import_layer(ImportConfig(), dataset.uri, "score/x", files, report=silent)
    assert counts == JoinCounts(matched=2, missing=0, unknown=4, duplicate=4)
    assert [row["x"] for row in rows_of(dataset, "score/x", tmp_path)] == [4, 1]


def test_tables_that_do_not_fit_together(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (2,))
    files = [
        write(tmp_path / "a.parquet", pa.table({"uid": ["u0"], "x": [1]})),
        write(tmp_path / "b.parquet", pa.table({"uid": ["u1"], "y": [1]})),
    ]
    with pytest.raises(SourceError, match="has other columns than the table before it"):
        import_layer(FILL, dataset.uri, "score/x", files, report=silent)


def test_names_of_layers(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (1,))
    file = write(tmp_path / "t.parquet", pa.table({"uid": ["u0"], "x": [1]}))
    with pytest.raises(ConfigError, match="is not the name of a layer"):
        import_layer(ImportConfig(), dataset.uri, "x", [file], report=silent)


def test_a_score_from_elsewhere_can_be_selected_by(tmp_path):
    from clipmill.data.filters import ClipScoreFilter
    from clipmill.data.select import SelectConfig, filter_steps, select

    dataset = bare_dataset(tmp_path / "d", (2, 2))
    add_layer(dataset, "score/clip-1", {"real": np.zeros(4, np.float32)})
    table = pa.table({"uid": [f"u{n}" for n in range(3)], "similarity": [0.1, 0.5, 0.9]})
    file = write(tmp_path / "t.parquet", table)
    config = ImportConfig(columns={"real": "similarity"}, on_missing="fill")
    import_layer(config, dataset.uri, "score/datacomp", [file], report=silent)
    rule = SelectConfig(
        name="x", filters=filter_steps(ClipScoreFilter(threshold=0.5, layer="score/datacomp"))
    )
    layer = select(rule, dataset.uri, report=silent)
    keep = [row["keep"] for row in rows_of(dataset, layer, tmp_path)]
    assert keep == [False, True, True, False]


@pytest.fixture
def downloaded(tmp_path):
    """Seven pairs as img2dataset writes DataComp's; two have the same url, one no record."""
    members = []
    for number in range(7):
        key = f"{number:09d}"
        record = {
            "uid": f"{number:032x}",
            "key": key,
            "url": f"https://example.com/{max(number, 1)}.jpg",
            "caption": f"picture {number}",
        }
        members += [(f"{key}.jpg", jpeg(number)), (f"{key}.txt", f"picture {number}".encode())]
        members += [] if number == 6 else [(f"{key}.json", json.dumps(record).encode())]
    write_tar(tmp_path / "images/00000.tar", members)
    config = ShardConfig(samples_per_shard=4)
    uri = write_dataset(config, str(tmp_path / "images"), str(tmp_path / "store"))
    return Dataset.open(uri)


def datacomp(numbers):
    """DataComp's metadata of these samples."""
    return pa.table(
        {
            "uid": [f"{n:032x}" for n in numbers],
            "url": [f"https://example.com/{n}.jpg" for n in numbers],
            "text": [f'a "quoted",\ttext {n}' for n in numbers],
            "original_width": [100 + n for n in numbers],
            "original_height": [50 + n for n in numbers],
            "clip_l14_similarity_score": np.array(numbers, np.float32) / 10,
            "sha256": ["0" * 64] * len(numbers),
        }
    )


def test_datacomps_metadata_by_its_uid(downloaded, tmp_path):
    file = write(tmp_path / "metadata.parquet", datacomp([8, 3, 0, 5, 5, 9, 4, 2, 1]))
    counts = import_layer(FILL, downloaded.uri, "score/datacomp", [file], report=silent)
    assert counts == JoinCounts(matched=6, missing=1, unknown=2, duplicate=1)
    rows = rows_of(downloaded, "score/datacomp", tmp_path)
    assert [row["original_width"] for row in rows] == [100, 101, 102, 103, 104, 105, None]
    assert rows[2]["text"] == 'a "quoted",\ttext 2'
    assert [row["uid"] for row in rows] == [
        uid for index in range(2) for uid in downloaded.uids(index)
    ]


def test_datacomps_metadata_by_url(downloaded, tmp_path):
    """Its uid comes along; two samples of one url both get its row."""
    file = write(tmp_path / "metadata.parquet", datacomp([4, 0, 1, 2]))
    config = ImportConfig(by="url", on_missing="fill")
    counts = import_layer(config, downloaded.uri, "score/datacomp", [file], report=silent)
    assert counts == JoinCounts(matched=4, missing=3, unknown=1, duplicate=0)
    uids = [row["source_uid"] for row in rows_of(downloaded, "score/datacomp", tmp_path)]
    numbers = [1, 1, 2, None, 4, None, None]
    assert uids == [None if n is None else f"{n:032x}" for n in numbers]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv.gz", "tsv.gz", "ndjson"])
def test_text_tables_by_key(downloaded, tmp_path, kind):
    rows = [{"name": f"{n:09d}", "captions": f'text, "{n}"'} for n in (6, 4, 3, 2, 1, 0, 5)]
    text = io.StringIO()
    if "json" in kind:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "," if kind == "csv.gz" else "\t"
        table = csv.DictWriter(text, ["name", "captions"], delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    data = text.getvalue().encode()
    file = tmp_path / f"captions.v1.{kind}"
    file.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    config = ImportConfig(by="key", uid_column="name")
    counts = import_layer(config, downloaded.uri, "captions/x", [str(file)], report=silent)
    assert counts == JoinCounts(matched=7, missing=0, unknown=0, duplicate=0)
    found = [row["captions"] for row in rows_of(downloaded, "captions/x", tmp_path)]
    assert found == [[f'text, "{n}"'] for n in range(7)]


def test_identifiers_of_any_text_type(downloaded, tmp_path):
    keys = pa.array([f"{n:09d}" for n in range(7)])
    kinds = (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
    for number, kind in enumerate(kinds):
        file = write(tmp_path / "t.parquet", pa.table({"key": keys.cast(kind), "x": range(7)}))
        layer = f"score/x{number}"
        import_layer(ImportConfig(by="key"), downloaded.uri, layer, [file], report=silent)
        assert [row["x"] for row in rows_of(downloaded, layer, tmp_path)] == list(range(7))


def test_joins_that_match_nothing(downloaded, tmp_path):
    file = write(tmp_path / "t.parquet", pa.table({"uid": ["1", "2"], "x": [1, 2]}))
    with pytest.raises(ArtifactError, match=r"7 of 7 samples.*2 of its rows are unknown") as caught:
        import_layer(FILL, downloaded.uri, "score/x", [file], report=silent)
    assert "--by key or --by url" in caught.value.action
    with pytest.raises(ConfigError, match="columns was"):
        ImportConfig(columns={"uid": "uid"})


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.lists(st.lists(st.none() | st.integers(0, 7), max_size=6), max_size=4),
)
def test_matches_are_those_of_plain_dictionaries(tmp_path_factory, samples, batches):
    """Samples share urls, rows repeat them: the first row of a sample counts."""
    folder = tmp_path_factory.mktemp("index")
    members = []
    for number, url in enumerate(samples):
        record = json.dumps({"url": f"u{url}"}).encode()
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"x")]
        members += [(f"{number}.json", record)]
    config = ShardConfig(samples_per_shard=3)
    source = str(write_tar(folder / "a.tar", members))
    index = SampleIndex(Dataset.open(write_dataset(config, source, str(folder / "s"))), "url")
    seen: set[int] = set()
    unknown = duplicate = 0
    for batch in batches:
        rows, positions = index.match([None if n is None else f"u{n}" for n in batch])
        expected = []
        for row, value in enumerate(batch):
            known = [i for i, url in enumerate(samples) if url == value]
            expected += [(row, i) for i in known if i not in seen]
            unknown += not known
            duplicate += bool(known) and set(known) <= seen
            seen |= set(known)
        assert sorted(zip(rows.tolist(), positions.tolist(), strict=True)) == expected
    assert index.counts == JoinCounts(
        matched=len(seen), missing=len(samples) - len(seen), unknown=unknown, duplicate=duplicate
    )


def test_embeddings_of_another_tool(downloaded, tmp_path):
    """Lists of doubles become a teacher layer, of the captions of the same name."""
    keys = [f"{n:09d}" for n in range(7)]
    captions = write(tmp_path / "c.parquet", pa.table({"key": keys, "captions": [["a", "b"]] * 7}))
    vectors = [[[n / 8, 0.5, k] for k in range(3)] for n in range(7)]
    image = [[[1.0, 2.0, 3.0]], None, *[[[4.0, 5.0, 6.0]] * 2] * 5]
    table = pa.table({"key": keys, "image": image, "text": vectors})
    teacher = write(tmp_path / "t.parquet", table)
    by_key = ImportConfig(by="key")
    import_layer(by_key, downloaded.uri, "captions/x", [captions], report=silent)
    import_layer(by_key, downloaded.uri, "teacher/x", [teacher], report=silent)
    rows = rows_of(downloaded, "teacher/x", tmp_path)
    assert [row["image"] for row in rows] == image
    assert [row["text"] for row in rows] == vectors
    view = View(Dataset.open(downloaded.uri), ViewConfig(captions="both", layer="captions/x"))
    distillation = DistillationConfig(layer="teacher/x", teacher_widths=(1, 2))
    assert teacher_parent(view, distillation).role == "teacher"
    with pytest.raises(ConfigError, match=r"teacher_widths was \(768, 768\)"):
        teacher_parent(view, DistillationConfig(layer="teacher/x"))
    # No sample of the first shard has a row.
    config = ImportConfig(by="key", on_missing="fill")
    file = write(tmp_path / "p.parquet", table.slice(4))
    import_layer(config, downloaded.uri, "teacher/part", [file], report=silent)
    view = View(Dataset.open(downloaded.uri), ViewConfig())
    assert teacher_parent(view, replace(distillation, layer="teacher/part"))
    uneven = pa.table({"key": keys, "image": [[[1.0], [1.0, 2.0]]] * 7, "text": vectors})
    file = write(tmp_path / "u.parquet", uneven)
    with pytest.raises(ArtifactError, match="doesn't hold embeddings"):
        import_layer(by_key, downloaded.uri, "teacher/u", [file], report=silent)

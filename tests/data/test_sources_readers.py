"""Pairs of each kind of source against those that an independent reader of its format finds.

Every item of a source is a sample, or is counted under a reason.
"""

import csv
import gzip
import io
import json
import shutil
import tarfile
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from clipmill.data.dataset import Dataset
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_records
from clipmill.data.shards.write import write_dataset
from clipmill.data.sources import open_source
from clipmill.data.verify import verify
from clipmill.errors import BadSampleError, SourceError
from clipmill.images import decode_rgb
from helpers.heic import HEIC
from helpers.sources import jpeg, read_all, write_tar

JPEGS = [jpeg(i) for i in range(6)]

# Letters that break formats: quotes, delimiters, line ends, escapes, white space of any kind.
LETTERS = st.sampled_from(list("ab \"',;|\t\\\n\r é\u2028\u200b\ufeff.{}"))
TEXT = st.text(LETTERS, max_size=12)
ROWS = st.lists(st.tuples(st.integers(0, 7), TEXT), min_size=1, max_size=12)
EXAMPLES = settings(max_examples=25, deadline=None)


@contextmanager
def image_folder() -> Iterator[Path]:
    """Six images 0.jpg to 5.jpg in a folder of its own; 6.jpg and 7.jpg are missing."""
    with tempfile.TemporaryDirectory() as name:
        for i, data in enumerate(JPEGS):
            (Path(name) / f"{i}.jpg").write_bytes(data)
        yield Path(name)


def outcome(spec: str, size: int = 5) -> tuple[list[tuple[bytes, str]], Counter[str]]:
    """The pairs of a source, and its other items by reason."""
    pairs, reasons = [], Counter[str]()
    for entry in read_all(open_source(spec), size):
        try:
            pair = entry.load()
        except BadSampleError as error:
            reasons[error.reason] += 1
            continue
        caption = pair.caption
        pairs.append((pair.image_bytes, caption if isinstance(caption, str) else caption.decode()))
    return pairs, reasons


def wanted(rows: list[tuple[str, Any]]) -> tuple[list[tuple[bytes, str]], Counter[str]]:
    """The same of rows that another reader read; a caption that is no text is missing."""
    pairs, reasons = [], Counter[str]()
    for name, caption in rows:
        number = int(name.removesuffix(".jpg"))
        if not isinstance(caption, str):
            reasons["missing_caption"] += 1
        elif number < len(JPEGS):
            pairs.append((JPEGS[number], caption))
        else:
            reasons["missing_image"] += 1
    return pairs, reasons


@EXAMPLES
@given(ROWS, st.sampled_from([",", ";", "|", "\t"]), st.booleans(), st.booleans())
def test_csv_as_pandas_reads_it(
    rows: list[tuple[int, str]], delimiter: str, all_quoted: bool, is_compressed: bool
) -> None:
    with image_folder() as folder:
        text = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
        writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
        writer.writerows([("path", "caption"), *((f"{i}.jpg", caption) for i, caption in rows)])
        path = folder / ("t.csv.gz" if is_compressed else "t.csv")
        data = text.getvalue().encode()
        path.write_bytes(gzip.compress(data) if is_compressed else data)
        table = pd.read_csv(path, sep=delimiter, keep_default_na=False, dtype=str)
        name = "tab" if delimiter == "\t" else delimiter
        expected = wanted(list(table.itertuples(index=False, name=None)))
        assert outcome(f"{path}?delimiter={name}") == expected


@EXAMPLES
@given(ROWS)
def test_tsv_as_pandas_reads_it_without_quoting(rows: list[tuple[int, str]]) -> None:
    rows = [(i, "".join(text.split("\t")).replace("\n", "").replace("\r", "")) for i, text in rows]
    with image_folder() as folder:
        path = folder / "t.tsv"
        lines = ["path\tcaption", *(f"{i}.jpg\t{text}" for i, text in rows)]
        path.write_bytes("\n".join(lines).encode() + b"\n")
        table = pd.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, dtype=str
        )
        assert outcome(str(path)) == wanted(list(table.itertuples(index=False, name=None)))


def test_an_open_quote_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [f'{i}.jpg,"hello' if i == 5 else f"{i}.jpg,caption {i}" for i in range(30)]
    path.write_text("\n".join(["path,caption", *lines]) + "\n")
    with pytest.raises(SourceError, match="the row that begins at byte 93") as caught:
        read_all(open_source(str(path)))
    assert path.read_bytes()[93:].startswith(b'5.jpg,"hello')
    assert "quote=none" in str(caught.value)
    entries = read_all(open_source(f"{path}?quote=none"))
    assert [entry.origin for entry in entries] == [f"{i}.jpg" for i in range(30)]


def test_a_row_with_too_many_fields_is_counted(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    (tmp_path / "t.csv").write_text("path,caption\n0.jpg,a cat, asleep\n0.jpg,a dog,\n")
    pairs, reasons = outcome(str(tmp_path / "t.csv"))
    assert pairs == [(JPEGS[0], "a dog")]
    assert reasons == {"damaged_record": 1}


def test_flickr30k(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    rows = ["image_name| comment_number| comment", "0.jpg| 0| Two men .", "0.jpg| 1   A dog ."]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    pairs, reasons = outcome(f"{tmp_path / 'results.csv'}?delimiter=|")
    assert pairs == [(JPEGS[0], " Two men .")]
    assert reasons == {"missing_caption": 1}


VALUES = st.one_of(TEXT, st.none(), st.integers(0, 3), st.lists(TEXT, max_size=3))


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 7), VALUES), min_size=1, max_size=12))
def test_json_lines(rows: list[tuple[int, Any]]) -> None:
    with image_folder() as folder:
        lines = [json.dumps({"file_name": f"{i}.jpg", "text": value}) for i, value in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        read = [json.loads(line) for line in lines]
        named = [(row["file_name"], first_text(row["text"])) for row in read]
        expected = wanted(named)
        assert outcome(str(folder / "metadata.jsonl")) == expected
        # Of the folder, images without a row count as well.
        pairs, reasons = expected
        reasons["missing_caption"] += len({f"{i}.jpg" for i in range(6)} - {n for n, _ in named})
        assert outcome(f"imagefolder:{folder}") == (pairs, +reasons)


def first_text(value: Any) -> Any:
    """The caption that a list of them stands for: the first that shows something."""
    if not isinstance(value, list):
        return value
    shown = (t for t in value if any(unicodedata.category(c)[0] not in "CZ" for c in t))
    return next(shown, value[0] if value else None)


def test_imagefolder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "0.jpg").write_bytes(JPEGS[0 if split == "train" else 1])
        (folder / "extra.png").write_bytes(b"x")
        (folder / "metadata.csv").write_text(f"file_name,text\n0.jpg,of {split}\n")
    entries = read_all(open_source(str(tmp_path)))
    assert [entry.origin for entry in entries] == [
        *("test/0.jpg", "train/0.jpg", "test/extra.png", "train/extra.png")
    ]
    assert outcome(str(tmp_path)) == (
        [(JPEGS[1], "of test"), (JPEGS[0], "of train")],
        {"missing_caption": 2},
    )


def table_types() -> list[tuple[str, Callable[[list[str | None]], pa.Array]]]:
    plain = pa.string()
    return [
        ("string", lambda texts: pa.array(texts, plain)),
        ("large_string", lambda texts: pa.array(texts, pa.large_string())),
        ("string_view", lambda texts: pa.array(texts, pa.string_view())),
        ("dictionary", lambda texts: pa.array(texts, plain).dictionary_encode()),
        ("binary", lambda texts: pa.array([t and t.encode() for t in texts], pa.binary())),
        ("null", lambda texts: pa.nulls(len(texts))),
        ("list", lambda texts: pa.array([[t, "x"] for t in texts], pa.list_(plain))),
        ("fixed", lambda texts: pa.array([[t, "x"] for t in texts], pa.list_(plain, 2))),
    ]


@pytest.mark.parametrize(("name", "column"), table_types())
def test_parquet_as_pyarrow_reads_it(
    tmp_path: Path, name: str, column: Callable[[list[str | None]], pa.Array]
) -> None:
    texts = ["a cat", None, "a dog", "", "a cat"]
    # The first file's caption column has the type string, and another name.
    names = pa.array([f"{i}.jpg" for i in range(5)])
    for i, data in enumerate(JPEGS):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    pq.write_table(pa.table({"path": names, "text": pa.array(texts)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"caption": column(texts), "path": names}), tmp_path / "1.parquet")
    rows = []
    for number, caption in enumerate(("text", "caption")):
        table = pq.read_table(tmp_path / f"{number}.parquet")
        for path, value in zip(names.to_pylist(), table[caption].to_pylist(), strict=True):
            text = value.decode() if isinstance(value, bytes) else value
            if isinstance(text, list):
                text = next(t for t in text if t)
            rows.append((path, text))
    pairs, reasons = wanted(rows)
    blank = [pair for pair in pairs if not pair[1]]
    found, counted = outcome(f"parquet:{tmp_path}")
    assert found == [pair for pair in pairs if pair[1]]
    assert counted == +(reasons + Counter(empty_caption=len(blank)))
    lists = open_source(f"parquet:{tmp_path}").layers
    assert lists == (("captions/source",) if name in ("list", "fixed") else ())


def shows(text: str) -> bool:
    """True if a character of it shows."""
    return any(unicodedata.category(c)[0] in "LMNPS" and c != "\ufffd" for c in text)


@EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 7), st.one_of(TEXT, st.none(), st.integers())), max_size=15),
    st.integers(1, 8),
)
def test_coco_as_pycocotools_reads_it(rows: list[tuple[int, Any]], num_images: int) -> None:
    with image_folder() as folder:
        path = folder / "captions.json"
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(num_images)]
        annotations = [
            {"id": 3 * k, "image_id": i, "caption": text} for k, (i, text) in enumerate(rows)
        ]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        coco = COCO(str(path))
        pairs, reasons = [], Counter[str]()
        for i in sorted(coco.getImgIds()):
            texts = [a["caption"] for a in coco.loadAnns(coco.getAnnIds([i]))]
            texts = [text for text in texts if isinstance(text, str)]
            if not texts:
                reasons["missing_caption"] += 1
            elif not any(map(shows, texts)):
                reasons["empty_caption"] += 1
            elif i < len(JPEGS):
                pairs.append((JPEGS[i], next(filter(shows, texts))))
            else:
                reasons["missing_image"] += 1
        assert outcome(f"coco:{path}?images={folder}") == (pairs, reasons)


MEMBERS = st.lists(
    st.sampled_from(
        [
            *(
                f"{key}.{kind}"
                for key in ("a", "b", "d/a")
                for kind in ("jpg", "txt", "JPG", "TXT")
            ),
            *("a.json", "b.cls", "README", "._a.jpg", "d/.DS_Store", "d/._a.txt", "a.seg.png"),
        ]
    ),
    max_size=14,
)


@EXAMPLES
@example(["b.jpg", "a.seg.png", "a.txt", "a.seg.png", "a.jpg"], 2)
@given(MEMBERS, st.integers(1, 4))
def test_tars_as_webdataset_reads_them(names: list[str], size: int) -> None:
    from webdataset.tariterators import base_plus_ext

    with tempfile.TemporaryDirectory() as folder:
        members = [(name, content(name, i)) for i, name in enumerate(names)]
        path = write_tar(Path(folder) / "x.tar", members)
        # Its loop, but that a suffix that comes again begins a sample, as it does for open_clip:
        # webdataset itself ends with an error.
        samples: list[dict[str, bytes]] = []
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                # A name without a stem in a folder is its folder's key: nothing that is a sample.
                if key is None or key.endswith("/"):
                    continue
                suffix = suffix.lower()
                if not samples or samples[-1]["key"] != key.encode() or suffix in samples[-1]:
                    samples.append({"key": key.encode()})
                samples[-1][suffix] = tar.extractfile(member).read()
        expected = [
            (sample["jpg"], sample["txt"].decode())
            for sample in samples
            if {"jpg", "txt"} <= sample.keys()
        ]
        if not samples:
            return
        pairs, reasons = outcome(f"webdataset:{path}", size)
        captioned = [pair for pair in pairs if not pair[1].startswith("json")]
        assert captioned == expected
        assert reasons.total() >= len(samples) - len(pairs)


def content(name: str, number: int) -> bytes:
    if name.lower().endswith((".jpg", ".png")):
        return JPEGS[number % len(JPEGS)]
    return b'{"caption": "json %d"}' % number if name.endswith(".json") else b"text %d" % number


def test_a_tar_of_a_mac_and_one_that_is_compressed(tmp_path: Path) -> None:
    members = []
    for i in range(5):
        members += [(f"./._{i}.jpg", b"\0\5\x16\7"), (f"./{i}.jpg", JPEGS[i])]
        members += [(f"./._{i}.txt", b"\0\5\x16\7"), (f"./{i}.txt", b"picture %d" % i)]
    path = write_tar(tmp_path / "x.tar", members)
    expected = [(JPEGS[i], f"picture {i}") for i in range(5)]
    assert outcome(str(path)) == (expected, {})
    for name in ("y.tar.gz", "named-plain.tar"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        assert outcome(str(tmp_path / name)) == (expected, {})


def test_dots_in_names_of_members(tmp_path: Path) -> None:
    members = []
    for i in range(5):
        members += [(f"v1.{i:04d}.jpg", JPEGS[i]), (f"v1.{i:04d}.txt", b"frame %d" % i)]
    path = write_tar(tmp_path / "x.tar", members)
    for size in (1, 2, 5):
        assert outcome(str(path), size) == ([(JPEGS[i], f"frame {i}") for i in range(5)], {})


def test_an_unsorted_tar_names_the_rule(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", JPEGS[i]) for i in range(3)] + [(f"{i}.txt", b"x") for i in range(3)]
    source = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(SourceError, match=r"the first, x.tar/0: .*among 0.jpg.*tar --sort=name"):
        write_dataset(ShardConfig(), str(source), str(tmp_path / "store"))


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_rows_of_one_image_are_samples_for_any_shard_size(tmp_path: Path, size: int) -> None:
    with image_folder() as folder:
        rows = [f"{i % 6}.jpg,caption {i}" for i in range(30)]
        # Twice the same row is one sample, wherever the second lies.
        (folder / "t.csv").write_text("\n".join(["path,caption", *rows, rows[0], rows[29]]))
        config = ShardConfig(samples_per_shard=size)
        uri = write_dataset(config, str(folder / "t.csv"), str(tmp_path / "store"))
        dataset = Dataset.open(uri)
        assert dataset.num_samples == 30
        assert dataset.quarantine == {"duplicate_id": 2}
        assert verify(uri, contents=True).is_ok
        captions = [
            record.caption
            for index in range(len(dataset.shards))
            for record in read_records(dataset, index, tmp_path / "cache")
        ]
        assert captions == [f"caption {i}" for i in range(30)]


@pytest.mark.parametrize("size", [2, 100])
def test_layers_follow_a_dropped_sample(tmp_path: Path, size: int) -> None:
    with image_folder() as folder:
        rows = [{"path": f"{i}.jpg", "captions": [f"a {i}", f"b {i}"]} for i in range(5)]
        lines = [json.dumps(row) for row in [*rows, rows[1]]]
        (folder / "t.jsonl").write_text("\n".join(lines))
        config = ShardConfig(samples_per_shard=size)
        uri = write_dataset(config, str(folder / "t.jsonl"), str(tmp_path / "store"))
        assert Dataset.open(uri).num_samples == 5
        assert "captions/source" in Dataset.open(uri).layers
        assert verify(uri, contents=True).is_ok


@pytest.mark.parametrize("kind", ["t.csv", "t.jsonl", "t.parquet", "t.json"])
@pytest.mark.parametrize("mode", ["content", "metadata"])
def test_a_mended_image_changes_the_digest(tmp_path: Path, kind: str, mode: Any) -> None:
    table = pa.table({"path": ["0.jpg", "1.jpg"], "caption": ["a", "b"]})
    path = tmp_path / kind
    if kind.endswith("csv"):
        path.write_text("path,caption\n0.jpg,a\n1.jpg,b\n")
    elif kind.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    elif kind.endswith("parquet"):
        pq.write_table(table, path)
    else:
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(2)]
        annotations = [{"id": i, "image_id": i, "caption": "a"} for i in range(2)]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
    spec = f"{path}?images={tmp_path}"
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    digests = [open_source(spec).digest(mode)]
    (tmp_path / "1.jpg").write_bytes(JPEGS[1])
    digests.append(open_source(spec).digest(mode))
    (tmp_path / "0.jpg").write_bytes(JPEGS[2])
    digests.append(open_source(spec).digest(mode))
    assert len(set(digests)) == 3
    assert open_source(spec).digest(mode) == digests[-1]


def test_formats_that_shards_do_not_hold_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    photo = Image.new("RGB", (48, 32), (201, 40, 30))
    photo.paste((21, 60, 201), (0, 0, 24, 32))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for suffix, options in (("gif", {}), ("bmp", {}), ("tif", {}), ("avif", {"exif": turned})):
        photo.save(folder / f"{suffix}.{suffix}", **options)
    (folder / "heic.HEIC").write_bytes(HEIC)
    Image.new("RGB", (9_500, 9_500)).save(folder / "large.gif")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    dataset = Dataset.open(write_dataset(ShardConfig(), str(folder), str(tmp_path / "store")))
    assert dataset.quarantine == {"image_too_large": 1}
    records = read_records(dataset, 0, tmp_path / "cache")
    kinds = {"avif": ".jpg", "heic": ".jpg", "gif": ".png", "bmp": ".png", "tif": ".png"}
    assert {record.caption: record.suffix for record in records} == kinds
    for record in records:
        image = decode_rgb(record.image_bytes)
        is_turned = record.caption in {"avif", "heic"}
        assert image.size == (record.width, record.height) == ((32, 48) if is_turned else (48, 32))
        for position, color in (((5, 5), (21, 60, 201)), ((26, 42), (201, 40, 30))):
            x, y = position if is_turned else position[::-1]
            assert image.getpixel((x, y)) == pytest.approx(color, abs=16)


def test_formats_that_are_not_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipmill.data.shards.ingest.has_heic", lambda: False)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "heic.heic").write_bytes(HEIC)
    (folder / "cut.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(40))
    (folder / "xl.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text("a square")
    Image.new("RGB", (16, 16)).save(folder / "a.jpg", "WEBP")
    (folder / "a.txt").write_text("named .jpg")
    uri = write_dataset(ShardConfig(), str(folder), str(tmp_path / "store"))
    dataset = Dataset.open(uri)
    assert dataset.quarantine == {"unreadable_image": 3}
    (record,) = read_records(dataset, 0, tmp_path / "cache")
    assert record.suffix == ".webp"
    rejected = json.loads((Path(uri) / "dataset.json").read_text())["quarantined"]
    details = [item["detail"].split(",")[0] for item in rejected]
    assert details == ["no whole AVIF", "HEIC", "JPEG XL"]


def test_metadata_is_kept(tmp_path: Path) -> None:
    record = {
        "caption": "a cat",
        "url": "https://example.com/a.jpg",
        "key": "000000",
        "uid": "f" * 32,
        "original_width": 1496,
        "original_height": 520,
        "width": 24,
        "status": "success",
    }
    members = [("0.jpg", JPEGS[0]), ("0.json", json.dumps(record).encode()), ("0.txt", b"a cat")]
    write_tar(tmp_path / "x.tar", members)
    uri = write_dataset(ShardConfig(), str(tmp_path / "x.tar"), str(tmp_path / "store"))
    (read,) = read_records(Dataset.open(uri), 0, tmp_path / "cache")
    kept = ("url", "key", "uid", "original_width", "original_height")
    assert read.metadata == {name: record[name] for name in kept}
    assert (read.width, read.height) == (24, 16)


def test_save_to_disk_with_named_splits(tmp_path: Path) -> None:
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        folder = tmp_path / "d" / split
        folder.mkdir(parents=True)
        table = pa.table(
            {
                "image": [{"bytes": JPEGS[i], "path": None} for i in numbers],
                "text": ["x"] * len(numbers),
            }
        )
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
    shutil.copy(
        tmp_path / "d" / "train" / "dataset_info.json", tmp_path / "d" / "dataset_dict.json"
    )
    assert len(outcome(str(tmp_path / "d"))[0]) == 3
    assert outcome(f"{tmp_path / 'd'}?split=test") == ([(JPEGS[2], "x")], {})
    with pytest.raises(SourceError, match="no split val") as caught:
        open_source(f"{tmp_path / 'd'}?split=val")
    assert "test, train" in str(caught.value)


def test_json_lines_whose_first_line_is_damaged(tmp_path: Path) -> None:
    """It is counted as one bad row; columns are those of the first object."""
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    rows = ["{", json.dumps({"path": "a.jpg", "caption": "a cat"})]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    pairs, reasons = outcome(str(tmp_path / "t.jsonl"))
    assert pairs == [(jpeg(0), "a cat")]
    assert reasons == {"damaged_record": 1}


def test_lists_of_captions_in_any_json_lines_file_are_a_layer(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    for name, caption in (("a.jsonl", ["a cat", "a pet"]), ("b.jsonl", "a dog")):
        (tmp_path / name).write_text(json.dumps({"path": "a.jpg", "caption": caption}))
    assert open_source(f"jsonl:{tmp_path}").layers == ("captions/source",)


FILE_NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "sub/", "a.b/"]),
    st.sampled_from(["0", "1", "A", "v1.0", "é", ".hidden"]),
    st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".txt", ".TXT", ".json", ".gif", ""]),
)


@EXAMPLES
@given(st.sets(FILE_NAMES, min_size=1, max_size=20), st.integers(1, 5))
def test_a_folder_as_a_listing_of_it(names: set[str], size: int) -> None:
    names = {name for name in names if not name.endswith("/")}
    with tempfile.TemporaryDirectory() as root:
        for i, name in enumerate(sorted(names)):
            path = Path(root) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(
                f"text {i}".encode() if path.suffix.lower() == ".txt" else JPEGS[i % 6]
            )
        visible = [path for path in Path(root).rglob("*") if path.is_file() and path.name[0] != "."]
        images = [p for p in visible if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif")]
        texts = [p for p in visible if p.suffix.lower() == ".txt"]
        captioned = {p.with_suffix("") for p in texts}
        pairs = sum(p.with_suffix("") in captioned for p in images)
        # 0.txt and 0.TXT are one caption.
        alone = len(captioned - {p.with_suffix("") for p in images})
        if not images:
            with pytest.raises(SourceError, match="holds no image"):
                outcome(f"folder:{root}", size)
            return
        found, reasons = outcome(f"folder:{root}", size)
        assert len(found) == pairs
        lost = {"missing_caption": len(images) - pairs, "caption_without_image": alone}
        assert reasons == +Counter(lost)


STATUSES = st.sampled_from(["success", "failed_to_download", "failed_to_resize"])


@EXAMPLES
@given(
    st.lists(st.lists(STATUSES, min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from(["webdataset", "parquet", "files"]),
    st.integers(1, 5),
)
def test_img2dataset_as_webdataset_and_its_records_have_it(
    shards: list[list[str]], output: str, size: int
) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for number, statuses in enumerate(shards):
            write_img2dataset_shard(folder, number, statuses, output)
        found, reasons = outcome(f"img2dataset:{folder}", size)
        records = pd.concat(pd.read_parquet(path) for path in folder.glob("*.parquet"))
        if output == "webdataset":
            expected = []
            for path in sorted(folder.glob("*.tar")):
                with path.open("rb") as file:
                    expected += [
                        (sample["jpg"], sample["txt"].decode())
                        for sample in group_by_keys(
                            tar_file_expander([{"url": str(path), "stream": file}])
                        )
                    ]
        elif output == "parquet":
            with_image = records[records["jpg"].notna()]
            expected = list(zip(with_image["jpg"], with_image["caption"], strict=True))
        else:
            paths = sorted(folder.rglob("*.jpg"))
            expected = [(p.read_bytes(), p.with_suffix(".txt").read_text()) for p in paths]
        assert sorted(found) == sorted(expected)
        lost = "missing_image" if output == "parquet" else "not_downloaded"
        assert reasons == +Counter({lost: int((records["status"] != "success").sum())})


def write_img2dataset_shard(folder: Path, number: int, statuses: list[str], output: str) -> None:
    """A shard as img2dataset 1.47 writes it."""
    name = f"{number:05d}"
    keys = [f"{name}{i:04d}" for i in range(len(statuses))]
    images = [JPEGS[i % 6] if status == "success" else None for i, status in enumerate(statuses)]
    table: dict[str, Any] = {
        "key": keys,
        "url": [f"http://x/{key}" for key in keys],
        "caption": [f"picture {key}" for key in keys],
        "status": statuses,
        "error_message": [None if status == "success" else "error" for status in statuses],
    }
    if output == "parquet":
        table["jpg"] = pa.array(images, pa.binary())
    pq.write_table(pa.table(table), folder / f"{name}.parquet")
    stats = {"count": len(statuses), "successes": statuses.count("success")}
    (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    members = []
    for key, data in zip(keys, images, strict=True):
        if data is not None:
            members += [(f"{key}.jpg", data), (f"{key}.json", json.dumps({"key": key}).encode())]
            members.append((f"{key}.txt", f"picture {key}".encode()))
    if output == "webdataset":
        write_tar(folder / f"{name}.tar", members)
    elif output == "files":
        (folder / name).mkdir()
        for member, data in members:
            (folder / name / member).write_bytes(data)


HF_ROWS = st.lists(st.tuples(st.integers(0, 7), st.none() | TEXT), min_size=1, max_size=9)


@EXAMPLES
@given(HF_ROWS, st.integers(1, 3), st.sampled_from(["stream", "file", "parquet"]))
def test_datasets_folders_as_pyarrow_reads_them(
    rows: list[tuple[int, str | None]], num_files: int, layout: str
) -> None:
    """``save_to_disk`` (a stream) and its cache, and Parquet of the hub, as datasets 5 writes."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for number in range(num_files):
            part = rows[number::num_files]
            images = [
                {"bytes": JPEGS[i] if i < len(JPEGS) else None, "path": None} for i, _ in part
            ]
            image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            table = pa.table(
                {
                    "image": pa.array(images, image_type),
                    "text": pa.array([text for _, text in part], pa.string()),
                }
            )
            name = f"{folder}/data-{number:05d}-of-{num_files:05d}"
            if layout == "parquet":
                pq.write_table(table, f"{name}.parquet")
                continue
            writer = pa.ipc.new_stream if layout == "stream" else pa.ipc.new_file
            with writer(f"{name}.arrow", table.schema) as file:
                file.write_table(table, max_chunksize=2)
        expected_pairs, expected = [], Counter[str]()
        for path in sorted(folder.glob("data-*")):
            for row in read_arrow(path, layout).to_pylist():
                if row["image"]["bytes"] is None:
                    expected["missing_image"] += 1
                elif row["text"] is None:
                    expected["missing_caption"] += 1
                elif not row["text"]:
                    expected["empty_caption"] += 1
                else:
                    expected_pairs.append((row["image"]["bytes"], row["text"]))
        assert outcome(f"hf:{folder}") == (expected_pairs, expected)


def read_arrow(path: Path, layout: str) -> pa.Table:
    if layout == "parquet":
        return pq.read_table(path)
    reader = pa.ipc.open_stream if layout == "stream" else pa.ipc.open_file
    return reader(pa.memory_map(str(path))).read_all()


@EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 7), st.none() | TEXT), min_size=1, max_size=9),
    st.booleans(),
)
def test_imagefolder_as_pandas_reads_its_metadata(
    rows: list[tuple[int, str | None]], is_csv: bool
) -> None:
    with image_folder() as folder:
        rows = [(i, text or "" if is_csv else text) for i, text in rows]
        frame = pd.DataFrame(
            {"file_name": [f"{i}.jpg" for i, _ in rows], "text": [t for _, t in rows]}
        )
        if is_csv:
            path = folder / "metadata.csv"
            frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL)
            read = pd.read_csv(path, keep_default_na=False, dtype=str)
        else:
            path = folder / "metadata.jsonl"
            frame.to_json(path, orient="records", lines=True)
            read = pd.read_json(path, lines=True, dtype=False)
        pairs, expected = wanted(
            list(read[["file_name", "text"]].itertuples(index=False, name=None))
        )
        named = {name for name, _ in zip(read["file_name"], read["text"], strict=True)}
        expected["missing_caption"] += sum(f"{i}.jpg" not in named for i in range(len(JPEGS)))
        assert outcome(str(folder)) == (pairs, +expected)

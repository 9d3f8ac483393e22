"""Tables: CSV, TSV, Parquet, COCO, Hugging Face folders; local images and those at s3://."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data.sources import RawPair, open_source
from clipmill.data.sources.base import Entry
from clipmill.errors import BadSampleError, SourceError
from clipmill.storage import write_bytes
from helpers.sources import jpeg, plan, read_all

FEATURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def reason(entry: Entry) -> str:
    with pytest.raises(BadSampleError) as caught:
        entry.load()
    return caught.value.reason


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Pictures 0.jpg to 9.jpg in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    return folder


def write_csv(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> Path:
    lines = [delimiter.join(("path", "caption"))]
    lines += [delimiter.join((name, f'"{text}"')) for name, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv?quote=double", "\t")])
def test_delimited(tmp_path: Path, images: Path, suffix: str, delimiter: str) -> None:
    rows = [(f"images/{i}.jpg", f"picture, {i}\nof ten") for i in range(10)]
    suffix, _, options = suffix.partition("?")
    path = write_csv(tmp_path / f"pairs{suffix}", rows, delimiter)
    source = open_source(f"{path}?{options}" if options else str(path))
    splits, _ = plan(source, 4)
    assert [split.num_items for split in splits] == [4, 4, 2]
    entries = read_all(source, 4)
    assert [entry.origin for entry in entries] == [name for name, _ in rows]
    assert [entry.load() for entry in entries] == [
        RawPair((images / f"{i}.jpg").read_bytes(), ".jpg", f"picture, {i}\nof ten".encode())
        for i in range(10)
    ]
    (last, *_) = source.entries(splits[2], lambda *_: b"")
    assert last.origin == "images/8.jpg"


def test_delimited_with_options(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("\ufeffkey,where,what,title\r\nk1,1.jpg,one,t\r\n\r\nk2,2.jpg,two,t\r\n")
    spec = f"csv:{path}?image=where&caption=what&id=key&images={images}"
    source = open_source(spec)
    assert [(e.origin, e.load().caption) for e in read_all(source)] == [
        ("k1", b"one"),
        ("k2", b"two"),
    ]
    again = open_source(source.uri)
    assert again.uri == source.uri
    assert again.digest("content") == source.digest("content")
    other = open_source(spec.replace("caption=what", "caption=title"))
    assert other.digest("content") != source.digest("content")


def test_delimited_rows_that_are_no_pairs(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "pairs.csv"
    rows = b"path,caption\n%s/1.jpg,caf\xe9\nnone.jpg,a cat\n,lost\n%s/2.jpg\n"
    path.write_bytes(rows.replace(b"%s", bytes(images)))
    entries = read_all(open_source(str(path)))
    assert entries[0].load().caption == b"caf\xe9"
    assert [reason(entry) for entry in entries[1:3]] == ["missing_image", "missing_image"]
    assert reason(entries[3]) == "missing_caption"


def test_giant_caption_in_csv(tmp_path: Path, images: Path) -> None:
    path = write_csv(tmp_path / "pairs.csv", [("images/0.jpg", "x" * 1_000_000)])
    (entry,) = read_all(open_source(str(path)))
    assert len(entry.load().caption) == 1_000_000


def test_empty_or_wordless_table(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(SourceError, match="is empty"):
        open_source(str(tmp_path / "empty.csv"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="image's path"):
        open_source(str(tmp_path / "other.csv"))
    with pytest.raises(SourceError, match="'nope'"):
        open_source(f"csv:{tmp_path / 'other.csv'}?image=nope")


@pytest.mark.parametrize("row_group_size", [3, 100])
def test_parquet_of_paths(tmp_path: Path, images: Path, row_group_size: int) -> None:
    table = pa.table(
        {
            "url": [f"http://x/{i}" for i in range(10)],
            "path": [f"images/{i}.jpg" for i in range(10)],
            "caption": [f"picture {i}" if i != 5 else None for i in range(10)],
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=row_group_size)
    source = open_source(str(tmp_path / "pairs.parquet"))
    entries = read_all(source, 4)
    assert [entry.origin for entry in entries] == table["path"].to_pylist()
    assert reason(entries.pop(5)) == "missing_caption"
    (one,) = read_all(open_source(f"parquet:{tmp_path}/pairs.parquet?id=url"))[:1]
    assert one.origin == "http://x/0"
    wanted = [i for i in range(10) if i != 5]
    assert [e.load() for e in entries] == [
        RawPair(jpeg(i), ".jpg", b"picture %d" % i, {}, {"url": f"http://x/{i}"}) for i in wanted
    ]


def test_parquet_of_bytes_in_many_files(tmp_path: Path) -> None:
    for k in range(2):
        numbers = range(3 * k, 3 * k + 3)
        columns = {"jpg": [jpeg(i) for i in numbers], "text": [f"picture {i}" for i in numbers]}
        pq.write_table(pa.table(columns), tmp_path / f"{k}.parquet")
    entries = read_all(open_source(f"parquet:{tmp_path}"), 2)
    assert [entry.origin for entry in entries] == [
        f"{k}.parquet#{row}" for k in range(2) for row in range(3)
    ]
    assert [e.load() for e in entries] == [
        RawPair(jpeg(i), ".jpg", b"picture %d" % i) for i in range(6)
    ]


def test_images_in_s3(tmp_path: Path, s3: dict[str, str]) -> None:
    for i in range(2):
        write_bytes(f"s3://tests/{tmp_path.name}/{i}.jpg", jpeg(i))
    rows = [
        ("0.jpg", "relative"),
        (f"s3://tests/{tmp_path.name}/1.jpg", "whole"),
        ("2.jpg", "none"),
    ]
    path = write_csv(tmp_path / "pairs.csv", rows)
    entries = read_all(open_source(f"csv:{path}?images=s3://tests/{tmp_path.name}"))
    assert [entry.load().image_bytes for entry in entries[:2]] == [jpeg(0), jpeg(1)]
    assert reason(entries[2]) == "missing_image"


def write_coco(folder: Path) -> Path:
    value = {
        "images": [{"id": i, "file_name": f"{9 - i}.jpg"} for i in range(3)],
        "annotations": [
            {"id": 50, "image_id": 0, "caption": "later"},
            {"id": 7, "image_id": 0, "caption": "first"},
            {"id": 8, "image_id": 2, "caption": "other"},
        ],
    }
    folder.mkdir(exist_ok=True)
    path = folder / "captions_images.json"
    path.write_text(json.dumps(value))
    return path


def test_coco(tmp_path: Path, images: Path) -> None:
    path = write_coco(tmp_path / "annotations")
    source = open_source(str(path))
    assert source.uri == f"coco:{path}?images={images}"
    assert source.layers == ("captions/coco",)
    entries = read_all(source, 2)
    assert [entry.origin for entry in entries] == ["7.jpg", "8.jpg", "9.jpg"]
    assert reason(entries[1]) == "missing_caption"
    last = entries[2].load()
    assert (last.image_bytes, last.caption) == (jpeg(9), "first")
    rows = last.rows["captions/coco"]
    assert rows == {"captions": ["first", "later"], "fallback": False}


def test_coco_without_its_images(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "annotations")
    with pytest.raises(SourceError, match="images of"):
        open_source(str(path))
    path.write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(SourceError, match="KeyError 'file_name'"):
        read_all(open_source(f"coco:{path}?images={tmp_path}"))


def hf_table(first: int) -> pa.Table:
    pictures = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(first, first + 5)]
    columns = {
        "label": pa.array(range(5)),
        "image": pa.array(pictures, FEATURE),
        "caption": pa.array([[f"picture {i}", "else"] for i in range(first, first + 5)]),
    }
    return pa.table(columns)


def write_hf_parquet(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for k in range(2):
        pq.write_table(hf_table(5 * k), folder / "data" / f"train-{k:05d}-of-00002.parquet")


def _write_arrow(folder: Path, is_stream: bool) -> None:
    folder.mkdir()
    for k in range(2):
        table = hf_table(5 * k)
        make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
        with make(str(folder / f"data-{k:05d}-of-00002.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "cache-0123.arrow").write_bytes(b"another table")
    (folder / "dataset_info.json").write_text("{}")


def write_hf_stream(folder: Path) -> None:
    _write_arrow(folder, is_stream=True)


def write_hf_file(folder: Path) -> None:
    _write_arrow(folder, is_stream=False)


@pytest.mark.parametrize("write", [write_hf_parquet, write_hf_stream, write_hf_file])
def test_hugging_face_folder(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "dataset")
    source = open_source(str(tmp_path / "dataset"))
    assert source.uri == f"hf:{tmp_path / 'dataset'}"
    splits, _ = plan(source, 3)
    assert [split.num_items for split in splits] == [3, 2, 3, 2]
    entries = read_all(source, 3)
    assert len({entry.origin for entry in entries}) == 10
    assert source.layers == ("captions/source",)
    assert [e.load() for e in entries] == [
        RawPair(
            jpeg(i),
            ".jpg",
            b"picture %d" % i,
            {"captions/source": {"captions": [f"picture {i}", "else"], "fallback": False}},
        )
        for i in range(10)
    ]


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(SourceError, match="can't be read as a table"):
        open_source(str(tmp_path / "x.parquet"))


def test_text_that_is_not_utf8(tmp_path: Path, images: Path) -> None:
    texts = pa.array([b"caf\xe9", b"a cat"]).view(pa.string())
    paths = pa.array([b"images/0.jpg", b"\xff.jpg"]).view(pa.string())
    pq.write_table(pa.table({"path": paths, "caption": texts}), tmp_path / "x.parquet")
    first, second = read_all(open_source(str(tmp_path / "x.parquet")))
    assert first.load().caption == b"caf\xe9"
    assert second.origin == "\\xff.jpg"
    assert reason(second) == "missing_image"


def test_half_a_character_in_json(tmp_path: Path, images: Path) -> None:
    path = write_coco(tmp_path / "annotations")
    path.write_text(
        path.read_text().replace("later", "later \\ud83d").replace("8.jpg", "\\ud83d.jpg")
    )
    entries = {entry.origin: entry for entry in read_all(open_source(str(path)))}
    assert reason(entries["9.jpg"]) == "caption_not_utf8"
    assert reason(entries["\\ud83d.jpg"]) == "missing_caption"


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg", "..", "images"])
def test_name_that_no_file_can_have(tmp_path: Path, images: Path, name: str) -> None:
    pq.write_table(pa.table({"path": [name], "caption": ["a cat"]}), tmp_path / "x.parquet")
    (entry,) = read_all(open_source(str(tmp_path / "x.parquet")))
    assert reason(entry) == "missing_image"


def test_damaged_pages_of_parquet(tmp_path: Path) -> None:
    columns = {"jpg": [jpeg(i) for i in range(20)], "caption": ["a cat"] * 20}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[30:3000] = bytes(2970)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="can't be read as a table"):
        read_all(open_source(str(path)))

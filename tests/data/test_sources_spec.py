"""How a source is named: kinds seen and said, options, and clear refusals."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data.sources import SOURCES, open_source, parse_spec
from clipmill.data.sources.files import sorted_records
from clipmill.data.sources.folder import FolderSource
from clipmill.errors import BadSampleError, SourceError
from helpers.sources import jpeg, plain_samples, read_all, write_tar


def write_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "0.jpg").write_bytes(jpeg(0))
    (folder / "0.txt").write_text("picture 0")


def test_kind_and_options_are_taken_apart() -> None:
    spec = parse_spec("csv:/data/x.csv?caption=alt%20text&images=s3://b/x", SOURCES)
    assert (spec.kind, spec.path) == ("csv", "/data/x.csv")
    assert spec.options == {"caption": "alt text", "images": "s3://b/x"}


def test_name_with_a_question_mark(tmp_path: Path) -> None:
    write_folder(tmp_path / "what?a=b")
    assert len(read_all(open_source(str(tmp_path / "what?a=b")))) == 1


def test_kind_that_two_could_be(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_tar(tmp_path / "a.tar", plain_samples(0, 2))
    with pytest.raises(SourceError, match="could be any of webdataset, folder"):
        open_source(str(tmp_path))
    assert len(read_all(open_source(f"webdataset:{tmp_path}"))) == 2
    assert len(read_all(open_source(f"folder:{tmp_path}"))) == 1


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("{}/x.json", "no source of a known kind"),
        ("{}/none", "doesn't exist"),
        ("tfrecord:{}", "doesn't exist"),
    ],
)
def test_no_source_of_a_known_kind(tmp_path: Path, spec: str, what: str) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(SourceError, match=what):
        open_source(spec.format(tmp_path))


def test_unknown_option(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(SourceError, match="color is no option of a folder source"):
        open_source(f"folder:{tmp_path}?color=red")


def write_img2dataset(folder: Path, output: str) -> None:
    """Two shards of four URLs each, of which the last couldn't be had."""
    folder.mkdir()
    for shard in range(2):
        name = f"{shard:05d}"
        keys = [f"{name}{i:04d}" for i in range(4)]
        numbers = [4 * shard + i for i in range(3)]
        table = {
            "key": keys,
            "url": [f"http://x/{key}" for key in keys],
            "caption": [f"picture {4 * shard + i}" for i in range(4)],
            "status": ["success"] * 3 + ["failed_to_download"],
            "error_message": [None] * 3 + ["HTTP Error 404: Not Found"],
        }
        stats = {"count": 4, "successes": 3, "failed_to_download": 1, "failed_to_resize": 0}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))
        if output == "parquet":
            table["jpg"] = [jpeg(number) for number in numbers] + [None]
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
        members = []
        for key, number in zip(keys, numbers, strict=False):
            members += [
                (f"{key}.jpg", jpeg(number)),
                (f"{key}.json", json.dumps({"key": key, "status": "success"}).encode()),
                (f"{key}.txt", f"picture {number}".encode()),
            ]
        if output == "webdataset":
            write_tar(folder / f"{name}.tar", members)
        if output == "files":
            (folder / name).mkdir()
            for member, data in members:
                (folder / name / member).write_bytes(data)


@pytest.mark.parametrize(
    ("output", "lost"),
    [("webdataset", "not_downloaded"), ("files", "not_downloaded"), ("parquet", "missing_image")],
)
def test_img2dataset_output(tmp_path: Path, output: str, lost: str) -> None:
    write_img2dataset(tmp_path / "output", output)
    source = open_source(str(tmp_path / "output"))
    assert source.uri == f"img2dataset:{tmp_path / 'output'}"
    pictures, reasons = [], []
    for entry in read_all(source, 3):
        try:
            pictures.append(entry.load())
        except BadSampleError as bad:
            reasons.append((bad.reason, "404" in bad.detail))
    assert [raw.image_bytes for raw in pictures] == [jpeg(i) for i in (0, 1, 2, 4, 5, 6)]
    assert reasons == [(lost, lost == "not_downloaded")] * 2
    before = source.digest("content")
    stats = tmp_path / "output" / "00000_stats.json"
    stats.write_text(stats.read_text() + " ")
    assert open_source(source.uri).digest("content") != before


def test_img2dataset_of_another_version(tmp_path: Path) -> None:
    output = tmp_path / "output"
    write_img2dataset(output, "webdataset")
    record = output / "00001.parquet"
    pq.write_table(pq.read_table(record).drop(["error_message"]), record)
    with pytest.raises(SourceError, match=r"00001\.parquet has no column error_message"):
        read_all(open_source(str(output)))
    (output / "00000_stats.json").write_text('{"count": 3}')
    with pytest.raises(SourceError, match=r"no statistics of img2dataset \(KeyError"):
        read_all(open_source(str(output)))


def test_img2dataset_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not an output folder of img2dataset"):
        open_source(f"img2dataset:{tmp_path}")


@pytest.mark.parametrize("run_length", [1, 2, 7, 1000])
def test_sorting_in_runs(run_length: int) -> None:
    records = [(b"%d" % (i * 7919 % 101), b"x" * i, b"") for i in range(101)]
    assert list(sorted_records(iter(records), run_length)) == sorted(records)


def test_order_of_a_folder_is_that_of_whole_names(tmp_path: Path) -> None:
    names = ["a-b/x", "a/x", "a.b/x", "a", "a-b", "a.b", "B/Ü", "B/z", "B/a b"]
    for name in names:
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [item[0] for item in FolderSource(tmp_path).items()]
    assert found == sorted(f"{name}.jpg" for name in names)

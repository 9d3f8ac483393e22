"""WebDataset tars: plain ones, DataCompDR's keys, and tars that are damaged or mean harm."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.sources import RawPair, Source, open_source
from clipmill.data.sources.base import Entry
from clipmill.data.sources.files import PreadFile, expand_braces
from clipmill.data.sources.webdataset import TruncatedTarError, WebDatasetSource, members
from clipmill.errors import BadSampleError, SourceError
from helpers.sources import jpeg, plain_samples, plan, read_all, reinforced_sample, write_tar


def reason(entry: Entry) -> str:
    with pytest.raises(BadSampleError) as caught:
        entry.load()
    return caught.value.reason


def npz(num_images: int, num_texts: int, width: int = 8, value: float = 0) -> bytes:
    """Embeddings, all numbers the same."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        image_emb=np.full((num_images, width), value),
        text_emb=np.full((num_texts, width), value),
    )
    return buffer.getvalue()


def by_origin(source: Source) -> dict[str, Entry]:
    return {entry.origin: entry for entry in read_all(source, 3)}


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_are_those_of_tarfile(tmp_path: Path, tar_format: int) -> None:
    names = ["a.jpg", "folder/b.txt", "long/" * 25 + "c.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".jpg", "Ünï.txt"]
    path = write_tar(
        tmp_path / "x.tar", [(n, n.encode() * (i * 400)) for i, n in enumerate(names)], tar_format
    )
    with tarfile.open(path, "a", format=tar_format) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("special")
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isfile()]
    file = PreadFile(path)
    found = [(m.name, m.header, m.offset, m.size) for m in members(file, 0, file.size)]
    assert found == wanted


@pytest.mark.parametrize("cut", [100, 512, 600, 1024, 2000, 2600])
def test_cut_tar_is_noticed(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"x" * 1000), ("b.txt", b"y" * 1000)])
    path.write_bytes(path.read_bytes()[:cut])
    file = PreadFile(path)
    with pytest.raises(TruncatedTarError):
        list(members(file, 0, file.size))


def test_zip_bomb_of_a_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    file = PreadFile(path)
    with pytest.raises(TruncatedTarError, match="extended header"):
        list(members(file, 0, file.size))


def test_plain_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", plain_samples(5, 3))
    write_tar(tmp_path / "a.tar", plain_samples(0, 5))
    source = open_source(str(tmp_path))
    assert source.layers == ()
    entries = read_all(source, 2)
    assert [e.origin for e in entries] == [
        *(f"a.tar/{i:05d}" for i in range(5)),
        *(f"b.tar/{i:05d}" for i in range(5, 8)),
    ]
    raws = [entry.load() for entry in entries]
    assert raws == [RawPair(jpeg(i), ".jpg", f"picture {i}".encode()) for i in range(8)]


def test_splits_never_span_tars_and_can_be_read_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", plain_samples(0, 5))
    write_tar(tmp_path / "b.tar", plain_samples(5, 1))
    source = open_source(f"webdataset:{tmp_path}")
    splits, listing = plan(source, 2)
    assert [(s.piece, s.num_items) for s in splits] == [
        ("a.tar", 2),
        ("a.tar", 2),
        ("a.tar", 1),
        ("b.tar", 1),
    ]
    assert listing == b""
    (last, *_) = source.entries(splits[1], lambda *_: b"")
    assert last.origin == "a.tar/00002"


def test_pattern_with_braces(tmp_path: Path) -> None:
    for i in range(4):
        write_tar(tmp_path / f"{i:02d}.tar", plain_samples(i, 1))
    entries = read_all(open_source(f"{tmp_path}/{{01..02}}.tar"))
    assert [e.origin for e in entries] == ["01.tar/00001", "02.tar/00002"]
    assert len(read_all(open_source(f"{tmp_path}/*.tar"))) == 4
    with pytest.raises(SourceError, match="no file matches"):
        open_source(f"{tmp_path}/{{07..09}}.tar")


def test_braces_as_in_a_shell() -> None:
    assert list(expand_braces("x{08..11}-{a,b}")) == [
        f"x{i:02d}-{c}" for i in range(8, 12) for c in "ab"
    ]


def test_keys_end_at_the_first_dot_of_the_name(tmp_path: Path) -> None:
    sample = [("v1.0/0.jpg", jpeg(0)), ("v1.0/0.seg.png", b"mask"), ("v1.0/0.txt", b"a cat")]
    write_tar(tmp_path / "a.tar", sample)
    (entry,) = read_all(open_source(str(tmp_path / "a.tar")))
    assert entry.origin == "a.tar/v1.0/0"
    assert entry.load().image_bytes == jpeg(0)


def test_caption_in_json(tmp_path: Path) -> None:
    record = json.dumps({"caption": "a dog", "url": "x"}).encode()
    write_tar(tmp_path / "a.tar", [("0.png", jpeg(0)), ("0.json", record)])
    (entry,) = read_all(open_source(str(tmp_path / "a.tar")))
    assert entry.load() == RawPair(jpeg(0), ".png", "a dog", metadata={"url": "x"})


def test_damaged_samples_by_their_reasons(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("no-image.txt", b"a cat"),
            ("no-text.jpg", jpeg(0)),
            ("bad-json.jpg", jpeg(1)),
            ("bad-json.json", b"{"),
            ("missing_caption.jpg", jpeg(2)),
            ("missing_caption.json", b'{"url": "x"}'),
        ],
    )
    entries = by_origin(open_source(str(tmp_path / "a.tar")))
    assert {origin.removeprefix("a.tar/"): reason(e) for origin, e in entries.items()} == {
        "no-image": "caption_without_image",
        "no-text": "missing_caption",
        "bad-json": "damaged_record",
        "missing_caption": "missing_caption",
    }


@pytest.mark.parametrize("damage", ["cut-content", "cut-header", "overwritten-header"])
def test_damaged_tar_counts_once_and_keeps_what_came_before(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "a.tar", plain_samples(0, 4))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    data = path.read_bytes()
    if damage == "overwritten-header":
        data = data[: third.offset] + b"\xff" * 512 + data[third.offset + 512 :]
    else:
        data = data[: third.offset_data + 10 if damage == "cut-content" else third.offset + 100]
    path.write_bytes(data)
    write_tar(tmp_path / "b.tar", plain_samples(4, 1))
    entries = read_all(open_source(str(tmp_path)), 3)
    assert [entry.origin for entry in entries] == [
        "a.tar/00000",
        "a.tar/00001",
        "a.tar",
        "b.tar/00004",
    ]
    assert reason(entries[2]) == "truncated_tar"
    assert [entries[i].load().caption for i in (0, 1, 3)] == [
        b"picture 0",
        b"picture 1",
        b"picture 4",
    ]


def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path) -> None:
    below = tmp_path / "below"
    names = ("../../escaped", "/absolute", "a/../../b")
    samples = [(f"{n}{s}", d) for n in names for s, d in ((".jpg", jpeg(0)), (".txt", b"a cat"))]
    write_tar(below / "a.tar", samples)
    before = sorted(tmp_path.rglob("*"))
    entries = read_all(open_source(str(below)))
    assert [entry.origin for entry in entries] == [f"a.tar/{name}" for name in names]
    assert all(entry.load().image_bytes == jpeg(0) for entry in entries)
    assert sorted(tmp_path.rglob("*")) == before


def test_link_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)
    write_tar(tmp_path / "b.tar", [("0.txt", b"a cat")])
    path.write_bytes(path.read_bytes()[:512] + (tmp_path / "b.tar").read_bytes())
    (entry,) = read_all(open_source(str(path)))
    assert reason(entry) == "caption_without_image"


def test_reinforced_samples_bring_layers(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [m for i in range(3) for m in reinforced_sample(i)])
    source = open_source(str(tmp_path / "a.tar"))
    assert source.layers == ("captions/datacompdr", "teacher/datacompdr")
    raw = read_all(source)[1].load()
    assert raw.caption == b"picture 1"
    assert raw.rows["captions/datacompdr"] == {
        "captions": [f"synthetic 1 {k}" for k in range(3)],
        "fallback": False,
    }
    teacher = raw.rows["teacher/datacompdr"]
    assert [teacher[kind].shape for kind in ("image", "text")] == [(2, 8), (4, 8)]
    assert teacher["torchvision_augmentation"] == [[1, k, 8, 9, 1, 0.5] for k in range(2)]


def test_embeddings_stay_with_their_captions(tmp_path: Path) -> None:
    """Two real captions, of which the first counts, and a synthetic one that is blank."""
    changed = {
        "00000.txt": b'["first", "second"]',
        "00000.syn.json": json.dumps({"syn_text": ["  ", "kept"]}).encode(),
    }
    sample = [(name, changed.get(name, data)) for name, data in reinforced_sample(0)]
    write_tar(tmp_path / "a.tar", sample)
    (entry,) = read_all(open_source(str(tmp_path / "a.tar")))
    raw = entry.load()
    assert raw.caption == "first"
    assert raw.rows["captions/datacompdr"]["captions"] == ["kept"]
    stored = np.load(io.BytesIO(dict(sample)["00000.npz"]))["text_emb"].astype(np.float16)
    found = raw.rows["teacher/datacompdr"]["text"]
    np.testing.assert_array_equal(found, stored[[0, 3]])


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("syn.json", b"{"),
        ("syn.json", b'{"other": 1}'),
        ("npz", b"PK\x03\x04 cut"),
        ("npz", b"not a zip"),
        ("npz", npz(2, 4, value=np.nan)),
        ("npz", npz(2, 4, value=1e6)),
        ("npz", npz(2, 4, width=9)),
        ("npz", npz(0, 4)),
        ("paug.json", b"[]"),
        ("paug.json", b"[" * 100_000),
        ("paug.json", b'{"param_aug": [[[1, 1, 2, 2], []]]}'),
        *(
            ("paug.json", json.dumps({"param_aug": [augmentation] * 2}).encode())
            for augmentation in (
                [[1, 1, 2], None],
                [[1, 1, 0, 2], None],
                [[1, 1, 2.5, 2], None],
                [[-1, 1, 2, 2], None],
                [[1, 1, 2, 24], None],
                [[1, 1, 16, 2], None],
                [[1, 1, 2, 2], [[14, 0.5]]],
                [[1, 1, 2, 2], [[-1, 0.5]]],
                [[1, 1, 2, 2], [[1, float("nan")]]],
                [[1, 1, 2, 2], [[1]]],
                None,
            )
        ),
        ("syn.json", b'{"syn_text": "abc"}'),
        ("syn.json", b'{"syn_text": [null, "a", "b"]}'),
        ("syn.json", b'{"syn_text": ["one of four"]}'),
    ],
)
def test_broken_records(tmp_path: Path, key: str, data: bytes) -> None:
    broken = [(n, data if n == f"00001.{key}" else d) for n, d in reinforced_sample(1)]
    write_tar(tmp_path / "a.tar", [*reinforced_sample(0), *broken])
    good, bad = read_all(open_source(str(tmp_path / "a.tar")))
    good.load()
    assert reason(bad) == "damaged_record"


def test_layers_may_be_left_out_or_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", reinforced_sample(0))
    assert open_source(f"webdataset:{tmp_path}/a.tar?layers=").layers == ()
    named = open_source(f"webdataset:{tmp_path}/a.tar?layers=dfndr")
    assert "captions/dfndr" in named.layers
    assert open_source(named.uri).uri == named.uri


def test_digest_follows_the_bytes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", plain_samples(0, 2))
    source = open_source(str(path))
    content, metadata = source.digest("content"), source.digest("metadata")
    assert open_source(str(path)).digest("content") == content
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert source.digest("content") != content
    assert source.digest("metadata") != metadata


def test_flipped_bytes_spoil_samples_and_nothing_else(tmp_path: Path) -> None:
    members_of_four = [m for i in range(4) for m in reinforced_sample(i)]
    path = write_tar(tmp_path / "a.tar", members_of_four)
    data = path.read_bytes()
    source = open_source(str(path))
    read = ShardConfig().ingest.read
    random = np.random.default_rng(0)
    reasons = set()
    for _ in range(150):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 20):
            broken[position] = random.integers(256)
        path.write_bytes(broken)
        for entry in read_all(source, 2):
            try:
                read(entry)
            except BadSampleError as bad:
                reasons.add(bad.reason)
    assert {"truncated_tar", "unreadable_image", "damaged_record"} <= reasons


@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], ["--format=pax"], ["--format=pax", "--sparse-version=0.1"]],
)
def test_sparse_members_are_counted_and_named(tmp_path: Path, options: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}")
        with (folder / f"{i}.jpg").open("wb") as file:
            file.write(jpeg(i))
            for hole in range(1, 12 if i == 1 else 1):  # more than a header lists
                file.seek(hole << 17)
                file.write(b"x" * 4096)
    names = sorted(path.name for path in folder.iterdir())
    command = ["tar", "-S", *options, "-cf", tmp_path / "t.tar", "-C", folder, *names]
    subprocess.run(command, check=True)
    first, sparse, last = read_all(WebDatasetSource(str(tmp_path / "t.tar")))
    assert [first.load().image_bytes, last.load().image_bytes] == [jpeg(0), jpeg(2)]
    with pytest.raises(BadSampleError, match=r"damaged_record: 1\.jpg is a sparse member"):
        sparse.load()


@pytest.mark.parametrize("member", ["json", "txt"])
def test_a_list_of_captions_is_a_layer(tmp_path: Path, member: str) -> None:
    several = ["", "first", "second"]
    data = json.dumps({"caption": several} if member == "json" else several).encode()
    one = json.dumps({"caption": "only"}).encode() if member == "json" else b"only"
    members = [("0.jpg", jpeg(0)), (f"0.{member}", one), ("1.jpg", jpeg(1)), (f"1.{member}", data)]
    path = write_tar(tmp_path / "t.tar", members)
    uri = write_dataset(ShardConfig(), str(path), str(tmp_path / "out"))
    dataset = Dataset.open(uri)
    assert list(dataset.layers) == ["captions/source"]
    captions = read_layer(dataset, "captions/source", 0, tmp_path / "cache")["captions"].to_pylist()
    assert captions == [["only"], ["first", "second"]]

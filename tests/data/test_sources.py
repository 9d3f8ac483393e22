"""A folder of every kind of trouble, and the source as such."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clipmill.data.shards.ingest import ImageConstraints, IngestConfig, PreparedPair
from clipmill.data.sources import FolderSource
from clipmill.errors import BadSampleError, SourceError
from helpers.sources import read_all

WritePairs = Callable[[Path, int], Path]


def save(path: Path, size: tuple[int, int] = (8, 6), **options: object) -> bytes:
    Image.effect_noise(size, 80).convert("RGB").save(path, **options)
    return path.read_bytes()


ADMISSION = IngestConfig(
    constraints=ImageConstraints(max_pixels=10_000, min_side=4),
    max_caption_bytes=100,
    resize_shorter_side=0,
    jpeg_quality=0,
)


def read(source: FolderSource, origin: str) -> PreparedPair:
    entries = {entry.origin: entry for entry in read_all(source)}
    return ADMISSION.read(entries[origin])


def no_caption(folder: Path) -> str:
    save(folder / "a.jpg")
    return "a.jpg"


def caption_without_image(folder: Path) -> str:
    (folder / "a.txt").write_text("a cat")
    return "a.txt"


def empty_caption(folder: Path) -> str:
    save(folder / "a.jpg")
    (folder / "a.txt").write_text(" \n\t")
    return "a.jpg"


def caption_not_utf8(folder: Path) -> str:
    save(folder / "a.jpg")
    (folder / "a.txt").write_bytes("café".encode("latin-1"))
    return "a.jpg"


def giant_caption(folder: Path) -> str:
    save(folder / "a.jpg")
    (folder / "a.txt").write_text("a cat " * 20)
    return "a.jpg"


def empty_file(folder: Path) -> str:
    (folder / "a.png").touch()
    (folder / "a.txt").write_text("a cat")
    return "a.png"


def truncated_jpeg(folder: Path) -> str:
    data = save(folder / "a.jpg", (64, 64), quality=95)
    (folder / "a.jpg").write_bytes(data[: len(data) // 2])
    (folder / "a.txt").write_text("a cat")
    return "a.jpg"


def web_page(folder: Path) -> str:
    (folder / "a.jpg").write_text("<html>404</html>")
    (folder / "a.txt").write_text("a cat")
    return "a.jpg"


def icon_in_disguise(folder: Path) -> str:
    save(folder / "a.ico", format="ICO")
    (folder / "a.ico").rename(folder / "a.jpg")
    (folder / "a.txt").write_text("a cat")
    return "a.jpg"


def bomb(folder: Path) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(png)
    (folder / "a.txt").write_text("a cat")
    return "a.png"


def just_too_large(folder: Path) -> str:
    save(folder / "a.jpg", (101, 100))
    (folder / "a.txt").write_text("a cat")
    return "a.jpg"


def too_small(folder: Path) -> str:
    save(folder / "a.jpg", (40, 3))
    (folder / "a.txt").write_text("a cat")
    return "a.jpg"


BAD: list[tuple[str, Callable[[Path], str]]] = [
    ("missing_caption", no_caption),
    ("caption_without_image", caption_without_image),
    ("empty_caption", empty_caption),
    ("caption_not_utf8", caption_not_utf8),
    ("caption_too_long", giant_caption),
    ("empty_file", empty_file),
    ("unreadable_image", truncated_jpeg),
    ("unreadable_image", web_page),
    ("unreadable_image", icon_in_disguise),
    ("image_too_large", bomb),
    ("image_too_large", just_too_large),
    ("image_too_small", too_small),
]


@pytest.mark.parametrize(("reason", "make"), BAD)
def test_bad_sample_by_its_reason(tmp_path: Path, reason: str, make: Callable[[Path], str]) -> None:
    save(tmp_path / "good.jpg")
    (tmp_path / "good.txt").write_text("a dog")
    origin = make(tmp_path)
    source = FolderSource(tmp_path)
    with pytest.raises(BadSampleError) as caught:
        read(source, origin)
    assert caught.value.reason == reason
    assert read(source, "good.jpg").caption == "a dog"


def test_bomb_is_refused_unopened(tmp_path: Path) -> None:
    origin = bomb(tmp_path)
    source = FolderSource(tmp_path)
    tracemalloc.start()
    with pytest.raises(BadSampleError, match="30000 x 30000"):
        read(source, origin)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_largest_and_smallest_that_pass(tmp_path: Path) -> None:
    for name, size in (("large", (100, 100)), ("small", (4, 4))):
        save(tmp_path / f"{name}.jpg", size)
        (tmp_path / f"{name}.txt").write_text("a cat")
    source = FolderSource(tmp_path)
    assert [read(source, f"{n}.jpg").width for n in ("large", "small")] == [100, 4]


def test_pair_is_what_lies_in_the_folder(tmp_path: Path) -> None:
    data = save(tmp_path / "Ünïcode näme.JPEG", (9, 7))
    (tmp_path / "Ünïcode näme.txt").write_text("\ufeff  ein Kätzchen \n", encoding="utf-8")
    pair = read(FolderSource(tmp_path), "Ünïcode näme.JPEG")
    assert pair.image_bytes == data
    assert (pair.suffix, pair.caption) == (".jpeg", "ein Kätzchen")
    assert (pair.width, pair.height) == (9, 7)


def test_uid_tells_origins_and_contents_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a cat")
    save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    first = read(FolderSource(tmp_path), "a.jpg").uid
    assert read(FolderSource(tmp_path), "a.jpg").uid == first
    assert read(FolderSource(tmp_path), "b.jpg").uid != first
    save(tmp_path / "a.jpg", (9, 9))
    assert read(FolderSource(tmp_path), "a.jpg").uid != first


def test_items_are_sorted_and_others_passed_over(tmp_path: Path, write_pairs: WritePairs) -> None:
    write_pairs(tmp_path, 5)
    for name in (".hidden.jpg", "notes.md", "._001.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / ".cache" / "x.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    origins = [item[0] for item in FolderSource(tmp_path).items()]
    assert origins == [
        "part0/000.jpg",
        "part0/002.webp",
        "part0/004.png",
        "part1/001.png",
        "part1/003.jpg",
    ]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    for suffix in (b".jpg", b".txt"):
        data = save(tmp_path / "x.jpg") if suffix == b".jpg" else b"a cat"
        with open(bytes(tmp_path) + b"/\xff" + suffix, "wb") as file:  # noqa: PTH123
            file.write(data)
    (tmp_path / "x.jpg").unlink()
    assert read(FolderSource(tmp_path), r"\xff.jpg").caption == "a cat"


def test_digest_follows_names_and_contents(tmp_path: Path, write_pairs: WritePairs) -> None:
    write_pairs(tmp_path / "one", 5)
    write_pairs(tmp_path / "two", 5)
    digest = FolderSource(tmp_path / "one").digest("content")
    assert FolderSource(tmp_path / "two").digest("content") == digest
    caption = tmp_path / "two" / "part0" / "000.txt"
    caption.write_text("another")
    assert FolderSource(tmp_path / "two").digest("content") != digest
    caption.write_text("picture 0")
    assert FolderSource(tmp_path / "two").digest("content") == digest
    caption.rename(caption.with_name("moved.txt"))
    assert FolderSource(tmp_path / "two").digest("content") != digest


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        FolderSource(tmp_path / "none")


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(SourceError, match="holds no image"):
        read_all(FolderSource(tmp_path))


def test_file_that_vanishes_is_not_a_bad_sample(tmp_path: Path, write_pairs: WritePairs) -> None:
    write_pairs(tmp_path, 1)
    (entry,) = read_all(FolderSource(tmp_path))
    (tmp_path / "part0" / "000.jpg").unlink()
    with pytest.raises(SourceError, match="can't be read"):
        entry.load()

"""What the check of an image lets in, against Pillow's full decoding; and re-encoding."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.data.dataset import Dataset
from clipmill.data.shards.ingest import ImageConstraints, PreparedPair, check_image
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.tar import TarWriter
from clipmill.data.shards.write import write_dataset
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from helpers.sources import jpeg

LIMITS = ImageConstraints(max_pixels=10_000_000, min_side=1)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(1, (width, height))))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_size_is_of_the_upright_picture(orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    data = encoded(picture(), exif=exif) if orientation else encoded(picture())
    assert check_image(data, LIMITS) == decode_rgb(data).size


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_all_kinds_of_jpeg_pass(mode: str, options: dict[str, object]) -> None:
    assert check_image(encoded(picture().convert(mode), **options), LIMITS) == (60, 40)


@pytest.mark.parametrize("progressive", [False, True])
def test_cut_anywhere_fares_as_with_pillow(progressive: bool) -> None:
    data = encoded(picture(), progressive=progressive)
    for cut in range(2, len(data), 7):
        with pytest.raises(BadSampleError) as caught:
            check_image(data[:cut], LIMITS)
        assert caught.value.reason == "unreadable_image"


def test_what_the_check_refuses_pillow_refuses() -> None:
    random = np.random.default_rng(0)
    data = encoded(picture())
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for position in random.integers(2, len(data), 3):
            broken[position] = random.integers(256)
        try:
            check_image(bytes(broken), LIMITS)
        except BadSampleError as bad:
            refused += 1
            # Limits are looked at before anything is decoded.
            if bad.reason == "unreadable_image":
                with pytest.raises(BadSampleError):
                    decode_rgb(bytes(broken))
    assert refused > 20


def make_pair(size: int, number: int) -> PreparedPair:
    caption = "ein Kätzchen" * number
    return PreparedPair(f"{number:020x}", b"x" * size, ".jpeg", caption, 8, 9, "Ü/1", b"", {})


def test_tar_is_byte_for_byte_that_of_tarfile() -> None:
    pairs = [make_pair(size, i) for i, size in enumerate([0, 1, 511, 512, 513, 70_000])]
    ours = io.BytesIO()
    writer = TarWriter(ours)
    for pair in pairs:
        writer.add(pair)
    writer.finish()
    ours.seek(0)
    theirs = io.BytesIO()
    with (
        tarfile.open(fileobj=ours) as written,
        tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in written.getmembers():
            content = written.extractfile(member).read()
            info = tarfile.TarInfo(member.name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert ours.getvalue() == theirs.getvalue()
    assert writer.num_bytes == len(theirs.getvalue())


def write_source(folder: Path) -> Path:
    folder.mkdir()
    pictures = {
        "large": encoded(picture(60, 40), quality=95),
        "small": encoded(picture(10, 30)),
        "png": encoded(picture(50, 80), "PNG"),
    }
    for name, data in pictures.items():
        (folder / f"{name}.{'png' if name == 'png' else 'jpg'}").write_bytes(data)
        (folder / f"{name}.txt").write_text(name)
    return folder


def read_images(uri: str, cache: Path) -> dict[str, bytes]:
    with read_shard(Dataset.open(uri), 0, cache) as reader:
        return {reader.caption(row): reader.image(row) for row in range(len(reader))}


def test_bytes_are_untouched_unless_asked(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    found = read_images(
        write_dataset(ShardConfig(), str(source), str(tmp_path)), tmp_path / "cache"
    )
    assert found == {p.stem: p.read_bytes() for p in source.iterdir() if p.suffix != ".txt"}


def test_larger_images_are_made_smaller(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    config = ShardConfig(resize_shorter_side=20, jpeg_quality=80)
    found = read_images(write_dataset(config, str(source), str(tmp_path)), tmp_path / "cache")
    sizes = {name: decode_rgb(data).size for name, data in found.items()}
    assert sizes == {"large": (30, 20), "small": (10, 30), "png": (20, 32)}
    assert found["small"] == (source / "small.jpg").read_bytes()
    assert found["png"].startswith(b"\xff\xd8")


def test_all_images_are_re_encoded(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    config = ShardConfig(jpeg_quality=30)
    found = read_images(write_dataset(config, str(source), str(tmp_path)), tmp_path / "cache")
    for path in source.glob("*.jpg"):
        assert len(found[path.stem]) < path.stat().st_size
        assert decode_rgb(found[path.stem]).size == decode_rgb(path.read_bytes()).size

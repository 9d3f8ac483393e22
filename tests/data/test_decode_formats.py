"""Rare pixel formats: a dataset, the loader, captioners and an endpoint see the same pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipmill.data.captioned_images import read_sample
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_records, read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.transforms.augmentation import EncodedImage
from clipmill.serve.config import ServingConfig
from clipmill.serve.protocol.images import decode_image

GRAY, RGB, PALETTE, GRAY_ALPHA = 0, 2, 3, 4


def png(samples_HWC, depth, color, **chunks):
    """A PNG of these samples, written by hand: Pillow writes neither tRNS nor 16-bit color."""
    height, width, _ = samples_HWC.shape
    if depth == 1:
        rows = np.packbits(samples_HWC[..., 0].astype(np.uint8), axis=1)
    else:
        rows = samples_HWC.reshape(height, -1).astype(">u2" if depth == 16 else "u1")
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    named = {b"IHDR": header, **{k.encode(): v for k, v in chunks.items()}, b"IDAT": content}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in {**named, b"IEND": b""}.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def over_white(color_HW3, alpha_HW):
    alpha = alpha_HW[..., None] / 255
    return np.rint(color_HW3 * alpha + 255 * (1 - alpha))


def gray(values_HW):
    return np.repeat(values_HW[..., None], 3, axis=2)


def png_files():
    """Files and what each should look like."""
    ramp = np.arange(65_536).reshape(256, 256, 1)
    color = np.concatenate([ramp, ramp[::-1], ramp.transpose(1, 0, 2)], axis=2)
    steps = np.arange(256).reshape(16, 16, 1)
    bits = steps % 3 % 2
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    alphas = np.r_[np.arange(0, 256, 2), np.full(128, 255)]
    alpha_HW, hole_HW = 255 - steps[..., 0], np.where(ramp[..., 0] == 0x1234, 0, 255)
    palette = colors.astype("u1").tobytes()
    return {
        "16-bit gray": (png(ramp, 16, GRAY), gray(ramp[..., 0] >> 8)),
        "16-bit gray, one transparent": (
            png(ramp, 16, GRAY, tRNS=struct.pack(">H", 0x1234)),
            over_white(gray(ramp[..., 0] >> 8), hole_HW),
        ),
        "16-bit RGB": (png(color, 16, RGB), color >> 8),
        "16-bit LA": (
            png(np.concatenate([ramp, 65_535 - ramp], axis=2), 16, GRAY_ALPHA),
            over_white(gray(ramp[..., 0] >> 8), (65_535 - ramp[..., 0]) >> 8),
        ),
        "LA": (
            png(np.concatenate([steps, alpha_HW[..., None]], axis=2), 8, GRAY_ALPHA),
            over_white(gray(steps[..., 0]), alpha_HW),
        ),
        "gray, one transparent": (
            png(steps, 8, GRAY, tRNS=struct.pack(">H", 7)),
            gray(np.where(steps == 7, 255, steps)[..., 0]),
        ),
        "1-bit": (png(bits, 1, GRAY), gray(255 * bits[..., 0])),
        "palette, alphas": (
            png(steps, 8, PALETTE, PLTE=palette, tRNS=alphas.astype("u1").tobytes()),
            over_white(colors[steps[..., 0]], alphas[steps[..., 0]]),
        ),
        "gamma": (png(steps, 8, GRAY, gAMA=struct.pack(">I", 100_000)), gray(steps[..., 0])),
    }


def jpeg_files():
    """CMYK as Adobe writes it (inverted), and the same components taken for YCCK."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 6, 3), np.uint8))
    image = noise.resize((48, 48), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert("CMYK").save(buffer, "JPEG", quality=100, subsampling=0)
    cmyk = buffer.getvalue()
    transform = cmyk.index(b"Adobe") + 11
    assert cmyk[transform] == 0
    ycck = cmyk[:transform] + b"\2" + cmyk[transform + 1 :]
    # The stored components are 255 - C, M, Y: 255 - Y, Cb, Cr by JFIF's formulas.
    y, cb, cr = np.moveaxis(np.asarray(image).astype(float), 2, 0)
    red = y + 1.402 * (cr - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    blue = y + 1.772 * (cb - 128)
    inverted = 255 - np.clip(np.stack([red, green, blue], axis=2), 0, 255)
    return {"CMYK": (cmyk, np.asarray(image)), "YCCK": (ycck, inverted)}


FILES = {**png_files(), **jpeg_files()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMILL_CACHE", str(folder / "cache"))
        (folder / "source").mkdir()
        for number, (name, (data, _)) in enumerate(FILES.items()):
            suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
            (folder / "source" / f"{number}{suffix}").write_bytes(data)
            (folder / "source" / f"{number}.txt").write_text(name)
        uri = write_dataset(ShardConfig(), str(folder / "source"), str(folder / "store"))
        yield Dataset.open(uri)


@pytest.mark.parametrize("name", FILES)
def test_the_same_pixels_everywhere(dataset, name):
    data, expected_HW3 = FILES[name]
    assert not dataset.quarantine
    with read_shard(dataset, 0, cache_folder()) as reader:
        row = [reader.caption(row) for row in range(len(reader))].index(name)
        assert reader.image(row) == data
        captioned = np.asarray(read_sample(dataset, row).image)
    record = list(read_records(dataset, 0, cache_folder()))[row]
    assert (record.height, record.width) == expected_HW3.shape[:2]
    loaded, _ = EncodedImage(data).decode(1)
    served = decode_image(data, ServingConfig()).pixels_HW3
    np.testing.assert_array_equal(loaded, captioned)
    np.testing.assert_array_equal(served, captioned)
    tolerance = 4 if data.startswith(b"\xff\xd8") else 1
    difference = np.abs(captioned.astype(int) - expected_HW3)
    assert difference.max() <= tolerance

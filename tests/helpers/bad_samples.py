"""Samples as the web has them at its worst, each with what may become of it.

A maker writes one sample under a stem, and returns how many items of a source that makes.
"""

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = "good"
UNREADABLE = "unreadable_image"
TOO_LARGE = "image_too_large"
TOO_SMALL = "image_too_small"


@dataclass(frozen=True)
class Kind:
    """One way in which a sample is odd."""

    name: str
    outcomes: frozenset[str]
    """Reasons that it may be left out for; GOOD if it may be let in."""
    make: Callable[[Path, random.Random], None]
    """Writes the sample's files: ``stem`` with suffixes."""


def picture(
    random_: random.Random, size: tuple[int, int] = (24, 20), mode: str = "RGB"
) -> Image.Image:
    """Noise over a gradient, so that damage shows."""
    noise = np.random.default_rng(random_.getrandbits(32)).integers(0, 90, (size[1], size[0], 3))
    slope = np.linspace(0, 160, size[0], dtype=np.int64)[None, :, None]
    return Image.fromarray((noise + slope).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(stem: Path, suffix: str, image: bytes, caption: bytes = b"a cat") -> None:
    """An image and its caption beside it; the stem may hold dots."""
    for ending, data in ((suffix, image), (".txt", caption)):
        Path(f"{stem}{ending}").write_bytes(data)


def good(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", encoded(picture(r)))


def truncated(stem: Path, r: random.Random) -> None:
    data = encoded(picture(r), quality=95)
    write(stem, ".jpg", data[: r.randrange(3, len(data) * 9 // 10)])


def nearly_whole(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", encoded(picture(r))[: -r.randrange(1, 12)])


def bit_flipped(stem: Path, r: random.Random) -> None:
    data = bytearray(encoded(picture(r)))
    for _ in range(r.randrange(1, 9)):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    write(stem, ".jpg", bytes(data))


def bit_flipped_header(stem: Path, r: random.Random) -> None:
    kind, suffix = r.choice((("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp")))
    data = bytearray(encoded(picture(r), kind))
    for _ in range(r.randrange(1, 5)):
        data[r.randrange(min(len(data), 200))] ^= 1 << r.randrange(8)
    write(stem, suffix, bytes(data))


def spliced(stem: Path, r: random.Random) -> None:
    """The head of one file and the tail of another."""
    one, other = encoded(picture(r)), encoded(picture(r, (90, 70)))
    write(stem, ".jpg", one[: r.randrange(len(one))] + other[r.randrange(len(other)) :])


def garbage(stem: Path, r: random.Random) -> None:
    magic = r.choice(
        (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X")
    )
    write(stem, ".jpg", magic + r.randbytes(r.randrange(1, 4000)))


def huge_png(stem: Path, r: random.Random) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    side = r.choice((20_000, 60_000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    write(stem, ".png", b"\x89PNG\r\n\x1a\n" + body)


def huge_jpeg(stem: Path, r: random.Random) -> None:
    data = bytearray(encoded(picture(r)))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(
        ">HH", data, frame + 5, r.randrange(30_000, 65_536), r.randrange(30_000, 65_536)
    )
    write(stem, ".jpg", bytes(data))


def huge_webp(stem: Path, r: random.Random) -> None:
    canvas = (r.randrange(9_000, 1 << 24) - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas
    write(stem, ".webp", b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk)


def no_side(stem: Path, r: random.Random) -> None:
    data = bytearray(encoded(picture(r)))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, *r.choice(((0, 0), (0, 8), (8, 0))))
    write(stem, ".jpg", bytes(data))


def thin(stem: Path, r: random.Random) -> None:
    write(stem, ".png", encoded(picture(r, r.choice(((1, 1), (3, 400), (400, 2)))), "PNG"))


def endless_markers(stem: Path, r: random.Random) -> None:
    """Segments of length zero, or nothing but fill bytes: a reader might never get past them."""
    write(
        stem, ".jpg", b"\xff\xd8" + r.choice((b"\xff\xe0\x00\x00", b"\xff")) * r.randrange(1, 5000)
    )


def text_bomb(stem: Path, r: random.Random) -> None:
    """A PNG with text that inflates to a hundred megabytes."""
    data = encoded(picture(r), "PNG")
    payload = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 1)
    chunk = struct.pack(">I", len(payload)) + b"zTXt" + payload
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + payload))
    write(stem, ".png", data[:33] + chunk + data[33:])


def wrong_suffix(stem: Path, r: random.Random) -> None:
    kind = r.choice(("PNG", "WEBP", "JPEG"))
    write(stem, r.choice((".jpg", ".png", ".webp", ".JPEG")), encoded(picture(r), kind))


def foreign_format(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", encoded(picture(r), r.choice(("PPM", "ICO", "TGA"))))


def web_page(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", b"<!DOCTYPE html><title>404</title>" + b" " * r.randrange(5000))


def cmyk(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", encoded(picture(r, mode="CMYK")))


def sixteen_bit(stem: Path, r: random.Random) -> None:
    pixels = np.random.default_rng(r.getrandbits(32)).integers(0, 65_536, (20, 24), np.uint16)
    write(stem, ".png", encoded(Image.fromarray(pixels), "PNG"))


def other_modes(stem: Path, r: random.Random) -> None:
    write(stem, ".png", encoded(picture(r).convert(r.choice(("1", "L", "P", "LA", "RGBA"))), "PNG"))


def animated(stem: Path, r: random.Random) -> None:
    kind, suffix = r.choice((("PNG", ".png"), ("WEBP", ".webp")))
    frames = [picture(r) for _ in range(3)]
    write(stem, suffix, encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


def rotated(stem: Path, r: random.Random) -> None:
    exif = Image.Exif()
    exif[0x0112] = r.choice((2, 3, 4, 5, 6, 7, 8, 0, 9, 300))
    write(stem, ".jpg", encoded(picture(r), exif=exif))


def broken_exif(stem: Path, r: random.Random) -> None:
    exif = (
        b"Exif\0\0"
        + r.choice((b"", b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"))
        + r.randbytes(40)
    )
    write(stem, ".jpg", encoded(picture(r), exif=exif))


def broken_profile(stem: Path, r: random.Random) -> None:
    write(stem, ".jpg", encoded(picture(r), icc_profile=r.randbytes(r.randrange(1, 3000))))


def empty(stem: Path, r: random.Random) -> None:
    write(stem, r.choice((".jpg", ".png", ".webp")), b"")


def blank_caption(stem: Path, r: random.Random) -> None:
    blank = r.choice((b"", b" \n\t", b"\xef\xbb\xbf", "\u2003\u00a0".encode(), b"\r\n" * 999))
    write(stem, ".jpg", encoded(picture(r)), blank)


def giant_caption(stem: Path, r: random.Random) -> None:
    words = r.choice(("cat ", "\N{CAT FACE}", "x", "\n\n a"))
    write(stem, ".jpg", encoded(picture(r)), (words * r.randrange(50_000, 500_000)).encode())


def not_utf8(stem: Path, r: random.Random) -> None:
    caption = r.choice(
        (
            "café".encode("latin-1"),
            "猫".encode("shift-jis"),
            "a cat".encode("utf-16"),
            b"cut \xf0\x9f\x90",
            b"\xed\xa0\x80 a surrogate",
            b"\xc0\xaf overlong",
        )
    )
    write(stem, ".jpg", encoded(picture(r)), caption)


def odd_caption(stem: Path, r: random.Random) -> None:
    caption = r.choice(
        (
            "a\0cat",
            "\u202egnol a",
            "</script><b>",
            "{{x}} %s \\n",
            "e\u0301" * 99,
            "\U0010ffff",
            "\x1b[31m",
        )
    )
    write(stem, ".jpg", encoded(picture(r)), caption.encode())


def lone_picture(stem: Path, r: random.Random) -> None:
    Path(f"{stem}.jpg").write_bytes(encoded(picture(r)))


def lone_caption(stem: Path, r: random.Random) -> None:
    Path(f"{stem}.txt").write_bytes(b"a cat")


def odd_name(stem: Path, r: random.Random) -> None:
    odd = r.choice(
        (
            b" ", b"-rf", b"'\"`$(x)", b"a\nb", b"\xff\xfe", "猫".encode(), b"%2e%2e%2f", b"..",
            b"a.b.c", b"x" * 180, b"\x1b[2J", b"con", b"a\\..\\b", "e\u0301".encode(), b"*?",
        )
    )  # fmt: skip
    name = os.fsencode(stem) + b"-" + odd
    for suffix, data in ((b".jpg", encoded(picture(r))), (b".txt", b"a cat")):
        with open(name + suffix, "wb") as file:  # noqa: PTH123  # a Path can't hold every name
            file.write(data)


KINDS = [
    Kind(name, frozenset(outcomes), make)
    for name, outcomes, make in (
        ("good", {GOOD}, good),
        ("truncated", {UNREADABLE}, truncated),
        ("nearly whole", {GOOD, UNREADABLE}, nearly_whole),
        ("bit-flipped", {GOOD, UNREADABLE, TOO_LARGE, TOO_SMALL}, bit_flipped),
        ("bit-flipped header", {GOOD, UNREADABLE, TOO_LARGE, TOO_SMALL}, bit_flipped_header),
        ("spliced", {GOOD, UNREADABLE}, spliced),
        ("garbage", {UNREADABLE, TOO_LARGE, TOO_SMALL}, garbage),
        ("huge PNG", {TOO_LARGE}, huge_png),
        ("huge JPEG", {TOO_LARGE}, huge_jpeg),
        ("huge WebP", {TOO_LARGE}, huge_webp),
        ("no side", {TOO_SMALL, UNREADABLE}, no_side),
        ("thin", {TOO_SMALL}, thin),
        ("endless markers", {UNREADABLE}, endless_markers),
        ("wrong suffix", {GOOD}, wrong_suffix),
        ("foreign format", {UNREADABLE}, foreign_format),
        ("web page", {UNREADABLE}, web_page),
        ("CMYK", {GOOD}, cmyk),
        ("16 bits", {GOOD}, sixteen_bit),
        ("other modes", {GOOD}, other_modes),
        ("animated", {GOOD}, animated),
        ("rotated", {GOOD}, rotated),
        ("broken EXIF", {GOOD, UNREADABLE}, broken_exif),
        ("broken profile", {GOOD}, broken_profile),
        ("empty", {"empty_file"}, empty),
        ("blank caption", {"empty_caption"}, blank_caption),
        ("giant caption", {GOOD, "caption_too_long"}, giant_caption),
        ("caption not UTF-8", {"caption_not_utf8"}, not_utf8),
        ("odd caption", {GOOD}, odd_caption),
        ("lone picture", {"missing_caption"}, lone_picture),
        ("lone caption", {"caption_without_image"}, lone_caption),
        ("odd name", {GOOD}, odd_name),
    )
]
# Too slow to write for one in thirty.
RARE = Kind("text bomb", frozenset({GOOD, UNREADABLE}), text_bomb)


def write_corpus(folder: Path, count: int, seed: int) -> dict[str, Kind]:
    """Write so many samples, each kind as often as any other; the kind of each stem's start."""
    random_ = random.Random(seed)
    kinds = {}
    for number in range(count):
        kind = RARE if number == count - 1 else KINDS[number % len(KINDS)]
        stem = folder / f"{number % 7}" / f"{number:05d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        kind.make(stem, random_)
        kinds[stem.name] = kind
    return kinds

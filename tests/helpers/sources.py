"""Small sources of every kind, as the tools that make them lay them out, and a reader of them.

A source is read the way that shards are made from it: planned, then split by split.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipmill.data.sources import Entry, Source, Split

Members = Sequence[tuple[str, bytes]]


def jpeg(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture that differs from that of any other number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of plain files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plain_samples(first: int, count: int) -> list[tuple[str, bytes]]:
    """WebDataset members of samples ``first`` and on."""
    members = []
    for i in range(first, first + count):
        members += [(f"{i:05d}.jpg", jpeg(i)), (f"{i:05d}.txt", f"picture {i}".encode())]
    return members


def reinforced_sample(i: int, num_augmentations: int = 2, num_synthetic: int = 3) -> Members:
    """A sample with the keys of DataCompDR, and one real caption."""
    random = np.random.default_rng(i)
    arrays = {
        "image_emb": random.normal(size=(num_augmentations, 8)).astype(np.float32),
        "text_emb": random.normal(size=(1 + num_synthetic, 8)).astype(np.float32),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    synthetic = [f"synthetic {i} {k}" for k in range(num_synthetic)]
    augmentations = [[[i % 8, k, 8, 9], [[1, 0.5]]] for k in range(num_augmentations)]
    return [
        (f"{i:05d}.jpg", jpeg(i)),
        (f"{i:05d}.txt", f"picture {i}".encode()),
        (f"{i:05d}.url.txt", b"http://example.invalid/x"),
        (f"{i:05d}.syn.json", json.dumps({"syn_text": synthetic}).encode()),
        (f"{i:05d}.paug.json", json.dumps({"param_aug": json.dumps(augmentations)}).encode()),
        (f"{i:05d}.npz", buffer.getvalue()),
        (f"{i:05d}.json", json.dumps({"uid": f"{i:032x}", "sha256": "0" * 64}).encode()),
    ]


def plan(source: Source, size: int) -> tuple[list[Split], bytes]:
    """The splits of ``size`` items, and the listing they may speak of."""
    listing = io.BytesIO()
    splits = list(source.splits(size, listing))
    return splits, listing.getvalue()


def read_all(source: Source, size: int = 1000) -> list[Entry]:
    """All entries, in order."""
    splits, listing = plan(source, size)
    entries = []
    for split in splits:
        found = list(source.entries(split, lambda start, length: listing[start : start + length]))
        assert len(found) == split.num_items
        entries += found
    return entries

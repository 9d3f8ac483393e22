"""Decoded pictures with their captions, one at a time, from a dataset of ours or any source."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

from PIL import Image

from clipmill.data.dataset import MANIFEST, Dataset, cache_folder
from clipmill.data.shards.read import read_shard
from clipmill.data.sources import Source, open_source
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from clipmill.storage import exists, join

_COCO_LAYER = "captions/coco"


def open_captioned_images(data: str) -> Dataset | Source:
    """A dataset by its URI, or a source as ``clipmill data shard`` takes it (see ``sources``)."""
    return Dataset.open(data) if exists(join(data, MANIFEST)) else open_source(data)


def iter_captioned_images(
    opened: Dataset | Source,
    skipped: Counter[str],
    wanted: Callable[[str], bool] = lambda uid: True,  # noqa: ARG005  # every one
) -> Iterator[tuple[Image.Image, list[str]]]:
    """Yield each picture, upright RGB, with its captions; ``skipped`` counts the bad by reason.

    A COCO captions file brings all captions of an image, anything else one. Of a dataset, only
    samples whose uid is ``wanted``.
    """
    raw = _of_dataset(opened, wanted) if isinstance(opened, Dataset) else _of_source(opened)
    for found in raw:
        try:
            if isinstance(found, BadSampleError):
                raise found
            data, captions = found
            yield decode_rgb(data), captions
        except BadSampleError as bad:
            skipped[bad.reason] += 1


_Raw = tuple[bytes, list[str]] | BadSampleError


def _of_dataset(dataset: Dataset, wanted: Callable[[str], bool]) -> Iterator[_Raw]:
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache_folder()) as reader:
            for row in range(len(reader)):
                if not wanted(reader.uid(row)):
                    continue
                try:
                    yield reader.image(row), [reader.caption(row)]
                except BadSampleError as error:
                    yield error


def _of_source(source: Source) -> Iterator[_Raw]:
    with tempfile.TemporaryFile() as listing:
        splits = list(source.splits(1024, listing))
        listing.flush()

        def read(start: int, length: int) -> bytes:
            return os.pread(listing.fileno(), length, start)

        for split in splits:
            for entry in source.entries(split, read):
                try:
                    pair = entry.load()
                    own = pair.caption
                    caption = own if isinstance(own, str) else own.decode()
                except BadSampleError as error:
                    yield error
                    continue
                except UnicodeDecodeError as error:
                    yield BadSampleError("caption-not-utf8", str(error))
                    continue
                all_of: list[str] = pair.rows.get(_COCO_LAYER, {}).get("captions") or [caption]
                yield pair.image_bytes, all_of

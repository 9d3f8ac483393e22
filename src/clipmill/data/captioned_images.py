"""Iterate over decoded images with their captions, from a dataset or any source."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

from PIL import Image

from clipmill.data.dataset import MANIFEST, Dataset, cache_folder
from clipmill.data.shards.read import read_shard
from clipmill.data.sources import Source, open_source
from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.images import decode_rgb
from clipmill.storage import exists, join

_COCO_LAYER = "captions/coco"


def open_captioned_images(data: str) -> Dataset | Source:
    """Open a dataset by its URI, or a source by its spec (see ``sources``)."""
    return Dataset.open(data) if exists(join(data, MANIFEST)) else open_source(data)


def iter_captioned_images(
    opened: Dataset | Source,
    skipped: Counter[str],
    is_included: Callable[[str], bool] = lambda uid: True,  # noqa: ARG005  # every one
) -> Iterator[tuple[Image.Image, list[str]]]:
    """Yield each image, upright RGB, with its captions; ``skipped`` counts the bad by reason.

    A COCO captions file brings all captions of an image, anything else one. Of a dataset, only
    samples whose uid is included.
    """
    raw = _of_dataset(opened, is_included) if isinstance(opened, Dataset) else _of_source(opened)
    for item in raw:
        try:
            if isinstance(item, BadSampleError):
                raise item
            data, captions = item
            yield decode_rgb(data), captions
        except BadSampleError as bad:
            skipped[bad.reason] += 1


_Raw = tuple[bytes, list[str]] | BadSampleError


def _of_dataset(dataset: Dataset, is_included: Callable[[str], bool]) -> Iterator[_Raw]:
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache_folder()) as reader:
            for row in range(len(reader)):
                if not is_included(reader.uid(row)):
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
                    raw = pair.caption
                    caption = raw if isinstance(raw, str) else raw.decode()
                except BadSampleError as error:
                    yield error
                    continue
                except UnicodeDecodeError as error:
                    yield BadSampleError(BadSampleReason.CAPTION_NOT_UTF8, str(error))
                    continue
                captions: list[str] = pair.rows.get(_COCO_LAYER, {}).get("captions") or [caption]
                yield pair.image_bytes, captions

"""Decoded images with their captions: one sample of a dataset, or all of a dataset or source."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image

from clipmill.data.dataset import MANIFEST, Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import read_shard
from clipmill.data.sources import Source, open_source
from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.images import decode_rgb
from clipmill.storage import exists, join

_COCO_LAYER = "captions/coco"


@dataclass(frozen=True, slots=True)
class Sample:
    """An image of a dataset with its captions."""

    uid: str
    """Id of the sample in its dataset."""
    image: Image.Image
    """The image, upright RGB."""
    caption: str
    """The real caption."""
    synthetic: tuple[str, ...]
    """Captions of the layer that was asked for."""


def read_sample(dataset: Dataset, index: int, *, layer: str = "") -> Sample:
    """Read one sample of a dataset, by its number in the order of the shards.

    Args:
        dataset: An open dataset.
        index: 0 to ``dataset.num_samples - 1``; negative numbers count from the end.
        layer: Layer of synthetic captions to read, such as ``captions/coca-1a2b3c4d``; see
            ``dataset.layers``.

    Raises:
        IndexError: the dataset has no such sample.
        BadSampleError: the image or the caption can't be decoded.
        ArtifactError: a shard or layer isn't the one that the dataset lists.

    Example:
        >>> uri = clipmill.write_dataset(clipmill.ShardConfig(), "photos", "out")
        >>> sample = clipmill.read_sample(clipmill.Dataset.open(uri), 0)
        >>> sample.image.size, sample.caption
        ((64, 64), '...')
    """
    if not -dataset.num_samples <= index < dataset.num_samples:
        raise IndexError(f"sample {index} of {dataset.num_samples}")
    row = index % dataset.num_samples
    ends = list(accumulate(shard.num_samples for shard in dataset.shards))
    shard = next(number for number, end in enumerate(ends) if row < end)
    row -= ends[shard] - dataset.shards[shard].num_samples
    synthetic = ()
    if layer:
        table = read_layer(dataset, layer, shard, cache_folder(), columns=["captions"])
        synthetic = tuple(table["captions"][row].as_py())
    with read_shard(dataset, shard, cache_folder()) as reader:
        return Sample(
            uid=reader.uid(row),
            image=decode_rgb(reader.image(row)),
            caption=reader.caption(row),
            synthetic=synthetic,
        )


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

"""COCO captions: a JSON file of images and annotations, and the folder of the images."""

import json
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from clipmill.config import digest_json
from clipmill.data.parallel import OrderedMap, default_threads, ordered_map
from clipmill.data.sources.base import (
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
    has_text,
)
from clipmill.data.sources.files import (
    ImageFiles,
    escape_name,
    files_digest,
    image_suffix,
    images_digest,
    read_file,
    read_listing,
    write_listing,
)
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

LAYER = "captions/coco"


class CocoSource(Source):
    """An item an image, in the order of their file names.

    The real caption is that of the lowest annotation id; all of an image's captions are the
    layer ``captions/coco``, in the order of their ids.
    """

    layers = (LAYER,)

    def __init__(self, path: str, *, images: str = "") -> None:
        """``images``: the folder or ``s3://`` URI of the images.

        Without one they are looked for where COCO's own archives put them: in a folder that the
        JSON's name ends in, beside the JSON's folder. Raises SourceError if they aren't there.
        """
        self._path = Path(path).absolute()
        self._images = ImageFiles(images or str(_usual_folder(self._path)))
        self.uri = f"coco:{self._path}?images={self._images.base}"

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the JSON file, and over the local images that it names."""
        with ordered_map(default_threads()) as mapped:
            return self.digest_by(mapped, mode)

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """The same, images read by ``mapped``."""
        table = files_digest([(self._path.name, self._path)], mode, "coco")
        names = (item[0] for item in self._items())
        return digest_json([table, images_digest(names, self._images, mapped, mode)])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """Read the whole file, which COCO's format demands, and list its images."""
        return write_listing(self._items(), size, listing)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """The images of a range of the listing."""
        for name, *captions in read_listing(split, listing):
            yield Entry(escape_name(name), partial(self._load, name, captions))

    def _load(self, name: str, captions: list[Any]) -> RawPair:
        if not captions:
            raise BadSampleError(BadSampleReason.MISSING_CAPTION, "no annotation of the image")
        if not any(isinstance(caption, str) for caption in captions):
            raise BadSampleError(
                BadSampleReason.MISSING_CAPTION, f"the caption is {captions[0]!r}, not text"
            )
        texts = [text for text in captions if isinstance(text, str) and has_text(text)]
        if not texts:
            raise BadSampleError(BadSampleReason.EMPTY_CAPTION, "no character that shows")
        data = self._images.read(name)
        if any(escape_name(text) != text for text in texts):
            raise BadSampleError(
                BadSampleReason.CAPTION_NOT_UTF8, "one of the captions has half a character"
            )
        rows = {LAYER: {"captions": texts, "fallback": False}}
        return RawPair(data, image_suffix(name, data), texts[0], rows)

    def _items(self) -> Iterator[list[Any]]:
        try:
            value = json.loads(read_file(self._path))
            names = [(str(image["file_name"]), image["id"]) for image in value["images"]]
            captions: dict[Any, list[Any]] = {key: [] for _, key in names}
            for annotation in sorted(value["annotations"], key=_annotation_order):
                # Files cut down to some images keep the annotations of others.
                captions.get(annotation["image_id"], []).append(annotation.get("caption"))
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{self._path} is not a COCO captions file: {type(error).__name__} {error}",
                expected="JSON with `images` (id, file_name) and `annotations` "
                "(id, image_id, caption)",
                action="point at the captions_*.json of the dataset",
            ) from error
        for name, key in sorted(names, key=itemgetter(0)):
            yield [name, *captions[key]]


def _annotation_order(annotation: dict[str, Any]) -> tuple[bool, Any]:
    """Return the sort key of an annotation: ids may be numbers, text, both, or missing."""
    value = annotation.get("id", 0)
    return isinstance(value, str), value


def _usual_folder(path: Path) -> Path:
    """Return COCO's image folder for ``annotations/captions_train2017.json``: ``train2017``."""
    folder = path.parent.parent / path.stem.rpartition("_")[2]
    if not folder.is_dir():
        raise SourceError(
            f"the images of {path} aren't in {folder}",
            expected="the folder of the images",
            action=f"name it in the source: coco:{path}?images=FOLDER",
        )
    return folder

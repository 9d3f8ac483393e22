"""Interface of sources of image-text pairs: a stable order, split into ranges, read lazily."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from clipmill.data.parallel import OrderedMap
from clipmill.images import UNREADABLE_IMAGE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_SUFFIX = ".txt"

# Reasons for quarantine of an item, with their meaning.
REASONS = {
    "no-caption": "an image without a caption",
    "caption-without-image": "a caption without an image",
    "empty-caption": "the caption is nothing but white space",
    "caption-not-utf8": "the caption isn't UTF-8",
    "caption-too-long": "the caption has more bytes than the limit",
    "empty-file": "the image file has no bytes",
    "missing-image": "no file lies where the table says that the image is",
    "not-downloaded": "img2dataset's record says that the image couldn't be had",
    "broken-record": "the sample's record or embeddings can't be read",
    "cut-tar": "the tar ends, or stops being one, before its end",
    UNREADABLE_IMAGE: "the image is cut, broken, or neither JPEG, PNG nor WebP",
    "image-too-large": "the header claims more pixels than the limit",
    "image-too-small": "a side is shorter than the limit",
    "duplicate-id": "another sample has the same id",
    "duplicate-image": "another sample's image has the same bytes",
}

FingerprintMode = Literal["content", "metadata"]
"""What a source's digest covers: all bytes, or names, sizes and modification times of files."""

ReadListing = Callable[[int, int], bytes]
"""Reads ``length`` bytes from ``start`` of the listing that ``splits`` wrote."""


@dataclass(frozen=True, slots=True)
class Split:
    """A range of a source: the items of one shard."""

    piece: str
    """One of the source's files; interpreted by the source."""
    start: int
    """First row, or first byte, of the range in the piece."""
    stop: int
    """Where the range ends (exclusive)."""
    num_items: int
    """Items in the range, the bad ones included."""

    def to_json(self) -> list[Any]:
        """The fields in their order."""
        return [self.piece, self.start, self.stop, self.num_items]


@dataclass(frozen=True, slots=True)
class RawPair:
    """An image-text pair as its source holds it, not validated."""

    image_bytes: bytes
    suffix: str
    """The image file's suffix in lower case, with its dot."""
    caption: bytes | str
    """Bytes are decoded, and refused if they aren't UTF-8."""
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each layer that the source provides, this sample's values by column."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a source."""

    origin: str
    """Its id within the source, the same in every run."""
    load: Callable[[], RawPair]
    """Reads it, from any thread. Raises BadSampleError with one of REASONS, SourceError for a
    failure of the machine rather than the sample."""


class Source(ABC):
    """A collection of pairs. It must not change while in use."""

    uri: str
    """A source spec with an absolute path: opens the same source in any folder."""
    layers: tuple[str, ...] = ()
    """Names of the layers that it provides (see ``RawPair.rows``)."""

    @abstractmethod
    def digest(self, mode: FingerprintMode) -> str:
        """Return the SHA-256 (hex) of the source."""

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """Return :meth:`digest`, reading files by ``mapped``."""
        del mapped
        return self.digest(mode)

    @abstractmethod
    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """Split the source into ranges of ``size`` items, in order, in constant memory.

        A source whose items are expensive to enumerate writes them to ``listing``, and its splits
        are ranges of that; others leave it empty.
        """

    @abstractmethod
    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """Yield the items of a range, in order, without reading others."""

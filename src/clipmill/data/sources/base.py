"""Interface of sources of image-text pairs: a stable order, split into ranges, read lazily."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Literal, Protocol
from unicodedata import category

from clipmill.data.parallel import OrderedMap
from clipmill.errors import BadSampleReason, SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

OTHER_IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff")
"""Suffixes of images that are items of a source, but in formats that aren't read."""

CAPTION_SUFFIX = ".txt"

REASONS: Mapping[str, str] = {
    BadSampleReason.MISSING_CAPTION: "an image without a caption",
    BadSampleReason.CAPTION_WITHOUT_IMAGE: "a caption without an image",
    BadSampleReason.EMPTY_CAPTION: "the caption has no character that shows",
    BadSampleReason.CAPTION_NOT_UTF8: "the caption isn't UTF-8",
    BadSampleReason.CAPTION_TOO_LONG: "the caption has more bytes than the limit",
    BadSampleReason.EMPTY_FILE: "the image file has no bytes",
    BadSampleReason.MISSING_IMAGE: "no file lies where the table says that the image is",
    BadSampleReason.NOT_DOWNLOADED: "img2dataset's record says that the image couldn't be had",
    BadSampleReason.INVALID_URL: "the URL isn't one of http or https, or holds a password",
    BadSampleReason.PRIVATE_ADDRESS: "the URL's host has no public address",
    BadSampleReason.DISALLOWED_BY_ROBOTS: "the host's robots.txt disallows the URL",
    BadSampleReason.OPTED_OUT: "the response's X-Robots-Tag opts out of use for training",
    BadSampleReason.TOO_MANY_REDIRECTS: "the URL redirects more often than the limit",
    BadSampleReason.BODY_TOO_LARGE: "the response has more bytes than the limit",
    BadSampleReason.HTTP_ERROR: "the server answers with another status than 200",
    BadSampleReason.TIMED_OUT: "the response takes longer than the limit",
    BadSampleReason.UNREACHABLE: "the host has no address, or the connection fails",
    BadSampleReason.DAMAGED_RECORD: "the sample's record or embeddings can't be read",
    BadSampleReason.TRUNCATED_TAR: "the tar ends, or stops being one, before its end",
    BadSampleReason.UNREADABLE_IMAGE: "the image is cut, broken, or neither JPEG, PNG nor WebP",
    BadSampleReason.IMAGE_TOO_LARGE: "the header claims more pixels than the limit",
    BadSampleReason.IMAGE_TOO_SMALL: "a side is shorter than the limit",
    BadSampleReason.DUPLICATE_ID: "another sample has the same id",
    BadSampleReason.DUPLICATE_IMAGE: "another sample's image has the same bytes",
}
"""Reasons for which a source's item is rejected, with their meaning."""

RETRYABLE: Final = frozenset(
    {BadSampleReason.HTTP_ERROR, BadSampleReason.TIMED_OUT, BadSampleReason.UNREACHABLE}
)
"""Reasons for which a row is written to the dataset's retry list."""

# Unicode's control and format characters, lone surrogates, and white space.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})

# Common names of these columns, the most likely first.
IMAGE_NAMES: Final = (
    "path",
    "image_path",
    "filepath",
    "file",
    "filename",
    "file_name",
    "image",
    "image_name",
)

URL_NAMES: Final = ("url", "image_url", "img_url", "link", "uri")

BYTES_NAMES: Final = ("image", "jpg", "jpeg", "png", "webp", "img")

CAPTION_NAMES: Final = ("caption", "text", "title", "txt", "captions", "comment")

ID_NAMES: Final = ("uid", "id", "key", "image_id")

METADATA_NAMES: Final = ("key", "original_height", "original_width", "uid", "url")
"""Fields of a source that are kept with a sample: those by which other tables name it, and the
image's size before it was resized. img2dataset and DataComp write them under these names."""

LAYER: Final = "captions/source"
"""Layer of all captions of an image, of sources that list several."""

FingerprintMode = Literal["content", "metadata"]
"""Coverage of a source's digest: all bytes, or names, sizes and modification times of files."""

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
    """End of the range (exclusive)."""
    num_items: int
    """Items in the range, the bad ones included."""

    def to_json(self) -> list[Any]:
        """The fields in their order."""
        return [self.piece, self.start, self.stop, self.num_items]


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """Column of a table that names the images."""

    names: tuple[str, ...]
    """Its usual names, the most likely first."""
    role: str
    """Its content, for messages."""
    option: str
    """Option of a source spec that names it."""
    keeps_rows: bool = False
    """True if entries have all columns of their row, see ``Entry.row``."""


PATHS: Final = ImageColumn(IMAGE_NAMES, "image's path", "image")

URLS: Final = ImageColumn(URL_NAMES, "image's URL", "url", keeps_rows=True)


class ImageReader(Protocol):
    """Reader of the images that a table names."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; raises BadSampleError where there is none."""


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
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    """Fields of METADATA_NAMES that the source has, see :func:`sample_metadata`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a source."""

    origin: str
    """Its id within the source, the same in every run."""
    load: Callable[[], RawPair]
    """Reads it, from any thread. Raises BadSampleError with one of REASONS, SourceError for a
    failure of the machine rather than the sample."""
    identity: bytes = b""
    """Tells it from other items of the same origin; empty where the origin does."""
    row: Mapping[str, Any] | None = None
    """Its row in a table by column, with which a retry list is written (see RETRYABLE)."""


class Source(ABC):
    """A collection of pairs. It must not change while in use."""

    uri: str
    """A source spec with an absolute path: opens the same source in any folder."""
    layers: tuple[str, ...] = ()
    """Names of the layers that it provides (see ``RawPair.rows``)."""
    num_splits_ahead: int = 0
    """Splits whose entries are worth opening before they are read, since opening starts work."""

    def close(self) -> None:  # noqa: B027  # most sources have nothing to end
        """End what opened entries have started; none of them can be read any more."""

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


def sample_metadata(values: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the fields of METADATA_NAMES that have a value: sizes as numbers, others as text."""
    kept: dict[str, str | int] = {}
    for name in METADATA_NAMES:
        value = values.get(name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if name.startswith("original_"):
            with suppress(TypeError, ValueError, OverflowError):
                if (pixels := int(value)) > 0:  # type: ignore[arg-type]  # None is a TypeError
                    kept[name] = pixels
        elif isinstance(value, str | int) and value != "" and not isinstance(value, bool):
            kept[name] = str(value)
    return kept


def original_size(metadata: Mapping[str, str | int]) -> tuple[int, int] | None:
    """Return an image's width and height before its source resized it, if that names them."""
    width, height = metadata.get("original_width"), metadata.get("original_height")
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        return width, height
    return None


def has_text(text: str | bytes) -> bool:
    """Return whether a caption has a character that shows.

    White space, control and format characters (NUL, U+200B) don't, nor does U+FFFD, which stands
    for a character that couldn't be read.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return any(category(c) not in _INVISIBLE and c != "\ufffd" for c in text)


def caption_row(texts: Iterable[str]) -> dict[str, Any]:
    """Return a sample's row in the layer LAYER."""
    captions = [text for text in texts if has_text(text)]
    return {"captions": captions, "fallback": not captions}


def resolve_column(
    columns: Iterable[str], name: str, candidates: Sequence[str], role: str, option: str
) -> str:
    """Return the column ``name``, or if that is empty the first of ``candidates`` that exists.

    Raises SourceError, which lists the columns and the option that sets one.
    """
    columns = list(columns)
    if name and name in columns:
        return name
    by_name = {column.lower(): column for column in reversed(columns)}
    for candidate in () if name else candidates:
        if candidate in by_name:
            return by_name[candidate]
    raise SourceError(
        f"no column {name!r} for the {role}" if name else f"no column for the {role} is known",
        expected=f"one of the columns {', '.join(columns)}",
        action=f"name it in the source: KIND:PATH?{option}=COLUMN",
    )

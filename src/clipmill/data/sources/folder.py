"""Folder of image-text pairs: ``name.jpg`` with its caption in ``name.txt``."""

import hashlib
import heapq
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from clipmill.data.parallel import OrderedMap, default_threads, ordered_map
from clipmill.data.sources.base import (
    CAPTION_SUFFIX,
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
    sample_metadata,
)
from clipmill.data.sources.files import (
    read_file,
    read_listing,
    sorted_records,
    unreadable_error,
    write_listing,
)
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

_SUFFIXES = frozenset(map(os.fsencode, (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES, CAPTION_SUFFIX)))
_CAPTION = CAPTION_SUFFIX.encode()


class FolderSource(Source):
    """The pairs in a folder and its subfolders, in the order of their relative names.

    Hidden files and folders, files of other suffixes, and folders that are symbolic links are
    passed over.
    """

    def __init__(self, folder: Path, uri: str = "", *, has_records: bool = False) -> None:
        """Raise SourceError if ``folder`` is missing; ``uri`` is the source's name elsewhere.

        ``has_records``: ``name.json`` has the metadata of ``name.jpg``, as img2dataset writes it.
        """
        if not folder.is_dir():
            raise SourceError(
                f"{folder} is not a folder",
                expected="a folder of images, each with its caption in a .txt file next to it",
                action="correct the path of the source",
            )
        self.folder = folder
        self._has_records = has_records
        self._prefix = f"{folder}/"
        self.uri = uri or f"folder:{folder.absolute()}"

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over every image and caption: name and content, or name, size, time."""
        with ordered_map(default_threads()) as mapped:
            return self.digest_by(mapped, mode)

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """The same, files read by ``mapped``."""
        total = hashlib.sha256(b"" if mode == "content" else b"metadata\0")
        for fields in mapped(partial(_fingerprint_fields, self._prefix, mode), self.items()):
            total.update(fields)
        return total.hexdigest()

    def items(self) -> Iterator[tuple[str, str, str]]:
        """Yield origin, image name and caption name of each item; a missing name is empty.

        The origin is the image's (or lone caption's) name, relative to the folder.
        """
        for key, image, caption in _walk(os.fsencode(self.folder), b""):
            yield key.decode(), os.fsdecode(image), os.fsdecode(caption)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """List the folder; raises SourceError if it holds no image."""
        has_image = False

        def items() -> Iterator[list[Any]]:
            nonlocal has_image
            for item in self.items():
                has_image = has_image or bool(item[1])
                yield list(item)

        yield from write_listing(items(), size, listing)
        # Beside records of losses a folder without an image is one of which all were lost.
        if not has_image and not self._has_records:
            raise SourceError(
                f"{self.folder} holds no image",
                expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}, in any subfolder",
                action="correct the path of the source, or convert the images",
            )

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """The items of a range of the listing."""
        for origin, image, caption in read_listing(split, listing):
            yield Entry(origin, partial(self._load, origin, image, caption))

    def _load(self, origin: str, image: str, caption: str) -> RawPair:
        if not image:
            raise BadSampleError(
                BadSampleReason.CAPTION_WITHOUT_IMAGE, f"no image next to {origin}"
            )
        if not caption:
            raise BadSampleError(
                BadSampleReason.MISSING_CAPTION, f"no {CAPTION_SUFFIX} file next to {origin}"
            )
        text = read_file(self._prefix + caption)
        suffix = image[image.rindex(".") :].lower()
        metadata = self._metadata(image) if self._has_records else {}
        return RawPair(read_file(self._prefix + image), suffix, text, metadata=metadata)

    def _metadata(self, image: str) -> dict[str, str | int]:
        path = Path(self._prefix + image).with_suffix(".json")
        try:
            value = json.loads(read_file(path)) if path.is_file() else {}
        except ValueError:
            return {}
        return sample_metadata(value) if isinstance(value, dict) else {}


def _fingerprint_fields(prefix: str, mode: FingerprintMode, item: tuple[str, str, str]) -> bytes:
    """Return an item's part of the digest: its files' names, and their contents or metadata."""
    fields = b""
    for name in item[1:]:
        encoded = os.fsencode(name)
        fingerprint = _fingerprint(prefix + name, mode) if name else b""
        fields += len(encoded).to_bytes(4, "big") + encoded + fingerprint
    return fields


def _fingerprint(path: str, mode: FingerprintMode) -> bytes:
    if mode == "content":
        return hashlib.sha256(read_file(path)).digest()
    try:
        stat = os.stat(path)  # noqa: PTH116  # a Path would cost more than the call
    except OSError as error:
        raise unreadable_error(Path(path), error) from error
    return b"%d %d" % (stat.st_size, stat.st_mtime_ns)


def _walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (origin, image, caption) under ``root/below``, sorted by origin.

    Sorted by its name, with a slash after a folder's, each folder gives the order of whole
    paths; so that one folder's names are all that has to be sorted at once.
    """
    folders: list[tuple[bytes, bytes]] = []
    pairs = _pair_up(_files(root, below, folders), below)
    # Reading the files fills in the folders, so the first pair has to be drawn before.
    ordered = sorted_records(pairs)
    first = next(ordered, None)
    folders.sort()
    in_folders = ((key, name, b"/") for key, name in folders)
    start = () if first is None else (first,)
    for key, image, caption in heapq.merge(start, ordered, in_folders):
        if caption == b"/":
            yield from _walk(root, image)
        else:
            yield key, image, caption


def _files(
    root: bytes, below: bytes, folders: list[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (stem, suffix in lower case, name) of the files in one folder; note its folders."""
    folder = os.path.join(root, below)  # noqa: PTH118  # bytes: names need not be UTF-8
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    path = below + name + b"/"
                    folders.append((_escape_name(path), path))
                    continue
                stem, _, suffix = name.rpartition(b".")
                if b"." + suffix.lower() in _SUFFIXES and entry.is_file():
                    yield stem, b"." + suffix.lower(), name
    except OSError as error:
        raise unreadable_error(Path(os.fsdecode(folder)), error) from error


def _pair_up(
    files: Iterator[tuple[bytes, bytes, bytes]], below: bytes
) -> Iterator[tuple[bytes, bytes, bytes]]:
    for _, group in groupby(sorted_records(files), key=lambda record: record[0]):
        named = [(suffix, below + name) for _, suffix, name in group]
        captions = [name for suffix, name in named if suffix == _CAPTION]
        images = [name for suffix, name in named if suffix != _CAPTION]
        caption = captions[-1] if captions else b""
        for image in images:
            yield _escape_name(image), image, caption
        if not images:
            yield _escape_name(caption), b"", caption


def _escape_name(name: bytes) -> bytes:
    r"""UTF-8 for any name: a byte that isn't is spelled ``\xNN``, so that records can hold it."""
    return name.decode("utf-8", "backslashreplace").encode()

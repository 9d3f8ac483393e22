"""Read a source's files: listings, patterns, digests, images by name, and external sorting."""

import glob
import gzip
import hashlib
import heapq
import itertools
import json
import marshal
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from clipmill.data.dataset import cache_folder
from clipmill.data.parallel import OrderedMap
from clipmill.data.sources.base import FingerprintMode, ReadListing, Split
from clipmill.errors import (
    BadSampleError,
    BadSampleReason,
    NotFoundError,
    SourceError,
    StorageError,
)
from clipmill.storage import atomic_write, join, read_bytes
from clipmill.storage.store import check_key

_BLOCK = 1 << 20

_GZIP = b"\x1f\x8b"

_BRACES = re.compile(r"\{([^{}]*)\}")

_RANGE = re.compile(r"(\d+)\.\.(\d+)")

LISTING = "listing"

# Records held at once; file names make them about 100 bytes each.
RUN_LENGTH = 500_000

# Records of a run that are held while runs are merged.
_BLOCK_LENGTH = 1024

_SIZE = struct.Struct("<I")

Record = tuple[bytes, ...]


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a file; raises SourceError: the machine is at fault, not the sample."""
    try:
        # Plain system calls: a file object costs more than the reading of a small file.
        file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size + 1)
            while len(data) != size and (more := os.read(file, _BLOCK)):
                data += more
        finally:
            os.close(file)
    except OSError as error:
        raise unreadable_error(Path(path), error) from error
    return data


class PreadFile:
    """A file open for positioned reads, closed when no reference is left.

    Threads may still read from it when the loop that opened it has ended.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``; raises SourceError."""
        self.path = path
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable_error(path, error) from error

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.number).st_size

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, fewer where the file ends before."""
        try:
            return os.pread(self.number, length, offset)
        except OSError as error:
            raise unreadable_error(self.path, error) from error

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def uncompressed_file(path: Path) -> Path:
    """Return ``path``, or where it is compressed by gzip its content as a file in the cache.

    Ranges of a source are read by their offsets, which gzip has none of. Raises SourceError.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_GZIP)) != _GZIP:
                return path
        status = path.stat()
        identity = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
        name = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
        target = cache_folder() / "uncompressed" / name
        if not target.is_file():
            with atomic_write(target) as copy, gzip.open(path) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{path} can't be uncompressed: {error}",
            expected="a whole gzip file, and space for its content in the cache",
            action="copy the file again, or uncompress it with `gunzip`",
        ) from error
    return target


def unreadable_error(path: Path, error: OSError) -> SourceError:
    """Return the error for a file or folder that can't be read."""
    return SourceError(
        f"{path} can't be read: {error.strerror}",
        expected="a source with readable files that don't change",
        action="fix permissions or the disk, and run again: finished shards are kept",
    )


def files_digest(paths: Iterable[tuple[str, Path]], mode: FingerprintMode, salt: str = "") -> str:
    """Return the SHA-256 (hex) over the files' names and contents, or names, sizes and times.

    ``salt`` is whatever else decides what the source's samples are, such as its options.
    """
    total = hashlib.sha256(f"{mode}\0{salt}\0".encode())
    for name, path in paths:
        encoded = os.fsencode(name)
        total.update(len(encoded).to_bytes(4, "big") + encoded)
        try:
            if mode == "content":
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            else:
                stat = path.stat()
                total.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
        except OSError as error:
            raise unreadable_error(path, error) from error
    return total.hexdigest()


def images_digest(
    names: Iterable[str], images: "ImageFiles", mapped: OrderedMap, mode: FingerprintMode
) -> str:
    """Return the SHA-256 (hex) over the local images that a table names, in its order.

    Missing ones count as missing; those at ``s3://`` aren't read, so the table speaks for them.
    """
    local = (uri for uri in map(images.uri, names) if "://" not in uri)
    total = hashlib.sha256()
    for part in mapped(partial(_image_fingerprint, mode), (uri for uri, _ in groupby(local))):
        total.update(part)
    return total.hexdigest()


def _image_fingerprint(mode: FingerprintMode, path: str) -> bytes:
    try:
        stat = os.stat(path)  # noqa: PTH116  # a Path would cost more than the call
    except (OSError, ValueError):
        return b"missing"
    if mode == "metadata":
        return b"%d %d" % (stat.st_size, stat.st_mtime_ns)
    try:
        return hashlib.sha256(read_file(path)).digest()
    except SourceError:
        return b"unreadable"


def matching_files(path: str, suffixes: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the matching files, sorted by name.

    ``path`` is a file, a folder (with its subfolders), or a pattern with ``*``, ``?``,
    ``{a,b}`` and ``{00..12}``. Raises SourceError if there is none.
    """
    root = Path(path)
    if root.is_dir():
        files = sorted(_below(root, suffixes), key=os.fsencode)
        base = root
    elif root.is_file():
        files, base = [root], root.parent
    else:
        named = (Path(name) for pattern in expand_braces(path) for name in _glob(pattern))
        files = sorted({file for file in named if file.is_file()}, key=os.fsencode)
        base = Path(os.path.commonpath([file.parent for file in files])) if files else root
    if not files:
        raise SourceError(
            f"no file matches {path}",
            expected=f"a file, a folder with {', '.join(suffixes)} files, or a pattern",
            action="correct the path of the source",
        )
    return base, files


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that ``{a,b}`` and ``{00..12}`` stand for, as a shell would."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(braces[1])
    if bounds:
        first, last = bounds[1], bounds[2]
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _glob(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent) / name


def relative_names(base: Path, files: list[Path]) -> dict[str, Path]:
    """Return the files by their names relative to ``base``, with ``/``."""
    names = (os.fsencode(file.relative_to(base)) for file in files)
    texts = (name.decode("utf-8", "backslashreplace") for name in names)
    by_name = dict(zip(texts, files, strict=True))
    assert len(by_name) == len(files), "two names with the same escaped form"
    return by_name


class ImageFiles:
    """Reads images by the names in a table: local paths or ``s3://`` objects."""

    def __init__(self, base: str) -> None:
        """``base``: the folder or ``s3://`` URI that relative names are relative to."""
        self.base = base if "://" in base else str(Path(base).absolute())

    def uri(self, name: str) -> str:
        """Return the path or URI of an image."""
        return name if "://" in name or name.startswith("/") else join(self.base, name)

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; raises BadSampleError (``missing_image``) if there is none.

        Raises SourceError or StorageError if it exists but can't be read.
        """
        uri = self.uri(name)
        if not _maybe_exists(uri):
            raise BadSampleError(BadSampleReason.MISSING_IMAGE, f"no file at {escape_name(name)}")
        try:
            return read_bytes(uri) if "://" in uri else read_file(uri)
        except NotFoundError as error:
            raise BadSampleError(
                BadSampleReason.MISSING_IMAGE, f"no file at {escape_name(name)}"
            ) from error


def _maybe_exists(uri: str) -> bool:
    """Return whether a local file exists, or an object may: a bad name is its row's fault."""
    try:
        if "://" in uri:
            check_key(uri.partition("://")[2].partition("/")[2])
            return True
        return Path(uri).is_file()
    except (OSError, StorageError):
        return False


def escape_name(name: str) -> str:
    r"""Return ``name`` with everything that isn't UTF-8 as ``\xNN`` or ``\uNNNN``, for records."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_suffix(name: str, data: bytes) -> str:
    """Return the suffix of an image's name in lower case, or without one that of its format."""
    suffix = Path(name).suffix.lower()
    if suffix in (".jpg", ".jpeg", ".png", ".webp"):
        return suffix
    if data.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if data[8:12] == b"WEBP" else ".jpg"


def write_listing(items: Iterable[list[Any]], size: int, listing: BinaryIO) -> Iterator[Split]:
    """Write each item as a line of JSON, and yield a split of bytes every ``size`` items."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    start = position = count = 0
    for item in items:
        position += listing.write(encode(item).encode() + b"\n")
        count += 1
        if count == size:
            yield Split(LISTING, start, position, count)
            start, count = position, 0
    if count:
        yield Split(LISTING, start, position, count)


def read_listing(split: Split, listing: ReadListing) -> list[list[Any]]:
    """Return the items of a split of a listing."""
    lines = listing(split.start, split.stop - split.start).splitlines()
    assert len(lines) == split.num_items, split
    return [json.loads(line) for line in lines]


def sorted_records(records: Iterable[Record], run_length: int = RUN_LENGTH) -> Iterator[Record]:
    """Sort records externally, with at most about ``run_length`` of them in memory."""
    iterator = iter(records)
    first = sorted(itertools.islice(iterator, run_length))
    if len(first) < run_length:
        yield from first
        return
    with tempfile.TemporaryFile(prefix="clipmill-sort-") as file:
        stops = [_write_run(file, first)]
        first.clear()
        while run := sorted(itertools.islice(iterator, run_length)):
            stops.append(_write_run(file, run))
            run.clear()
        starts = [0, *stops[:-1]]
        runs = [_read(file.fileno(), *span) for span in zip(starts, stops, strict=True)]
        yield from heapq.merge(*runs)


def _write_run(file: BinaryIO, run: list[Record]) -> int:
    """Append a run block by block, and return where it ends."""
    for start in range(0, len(run), _BLOCK_LENGTH):
        block = marshal.dumps(run[start : start + _BLOCK_LENGTH])
        file.write(_SIZE.pack(len(block)) + block)
    file.flush()
    return file.tell()


def _read(file: int, start: int, stop: int) -> Iterator[Record]:
    while start < stop:
        (size,) = _SIZE.unpack(os.pread(file, _SIZE.size, start))
        block = os.pread(file, size, start + _SIZE.size)
        # Nobody else can write this file: it has no name.
        yield from marshal.loads(block)  # noqa: S302
        start += _SIZE.size + size

"""WebDataset tars: a sample is the run of members whose names share what precedes the first dot.

As readers of this format do, suffixes are taken in lower case, a suffix that comes a second time
begins another sample, and members whose names have no stem or no suffix (``README``, ``.DS_Store``,
``._0001.jpg`` of a Mac) are passed over. Unlike them, a run without an image of a plain suffix is
split at the last dot, so that ``v1.0001.jpg`` and ``v1.0002.jpg`` are two samples.

Beside an image and a caption (``txt``, or ``caption`` in ``json``), the members of DataCompDR's
release are read as rows of layers (:mod:`clipmill.data.sources.reinforcement`).
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

from clipmill.data.sources.base import (
    IMAGE_SUFFIXES,
    LAYER,
    OTHER_IMAGE_SUFFIXES,
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
    caption_row,
    has_text,
    sample_metadata,
)
from clipmill.data.sources.files import (
    PreadFile,
    files_digest,
    matching_files,
    relative_names,
    uncompressed_file,
)
from clipmill.data.sources.reinforcement import (
    DEFAULT_NAME,
    MAX_INSPECTED,
    ReinforcedLayers,
    drawn_size,
    inspect_samples,
    layer_rows,
)
from clipmill.errors import BadSampleError, BadSampleReason, SourceError
from clipmill.images import image_size

# Samples of each tar that are read to see whether they have several captions.
_NUM_INSPECTED = 20

# Members of a sample that a record of its loss names.
_MAX_NAMED = 4

_RULE = (
    "a sample's members share their name up to the first dot and lie side by side "
    "(`tar --sort=name`)"
)

_BLOCK = 512

_SPARSE = "GNU.sparse"

# Extended headers hold a name or a few records; more is an attempt to exhaust memory.
_MAX_EXTENSION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar."""

    name: str
    header: int
    """Offset of its first header, bytes."""
    offset: int
    """Offset of its content, bytes."""
    size: int
    """Bytes of its content."""
    is_sparse: bool = False
    """True if the content is stored without its runs of zeros, which isn't read."""


Sample = tuple[str, list[tuple[str, Member]]]
"""A sample's key (its members' common name) and its members by what follows the first dot."""


class TruncatedTarError(Exception):
    """The tar is truncated or damaged."""


class WebDatasetSource(Source):
    """The samples of one tar or many, in the order of the tars' names and of their members."""

    def __init__(self, path: str, *, layers: str = DEFAULT_NAME) -> None:
        """``path`` as for ``matching_files``.

        ``layers`` names the layers that DataCompDR's keys become; none are made if it's empty.
        """
        base, files = matching_files(path, (".tar", ".tar.gz", ".tgz"))
        self._files = relative_names(base, files)
        self._tars = {name: uncompressed_file(file) for name, file in self._files.items()}
        self.uri = f"webdataset:{Path(path).absolute()}?layers={layers}"
        self._name = layers
        self._layers = self._inspect() if layers else None
        # Several captions of a sample are a layer, unless reinforcements have a layer of them.
        self.layers = self._layers.layers if self._layers else ()
        self._has_lists = not self.layers and self._lists_captions()
        if self._has_lists:
            self.layers = (LAYER,)

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the tars."""
        return files_digest(self._files.items(), mode, self._name)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the headers of all members; a split never spans two tars."""
        for name in self._tars:
            yield from self._split_tar(name, size)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The samples of a range of one tar; where the tar is cut, one entry says so."""
        file = PreadFile(self._tars[split.piece])
        try:
            for key, parts in samples(file, split.start, split.stop):
                yield Entry(f"{split.piece}/{key}", partial(self._load, file, parts))
        except TruncatedTarError as error:
            yield Entry(
                split.piece,
                partial(_raise, BadSampleError(BadSampleReason.TRUNCATED_TAR, str(error))),
            )

    def _split_tar(self, name: str, size: int) -> Iterator[Split]:
        file = PreadFile(self._tars[name])
        start = count = 0
        try:
            for sample, may_begin in _samples_with_starts(file):
                if count >= size and may_begin:
                    stop = sample[1][0][1].header
                    yield Split(name, start, stop, count)
                    start, count = stop, 0
                count += 1
        except TruncatedTarError:
            count += 1  # the entry that says so
        if count:
            yield Split(name, start, file.size, count)

    def _load(self, file: PreadFile, parts: list[tuple[str, Member]]) -> RawPair:
        by_kind = dict(parts)
        read = partial(read_member, file, by_kind)
        image = next((kind for kind in by_kind if f".{kind}" in IMAGE_SUFFIXES), None)
        if image is None:
            image = next((kind for kind in by_kind if f".{kind}" in OTHER_IMAGE_SUFFIXES), None)
        texts = _captions(by_kind, read)
        if image is None:
            raise BadSampleError(
                BadSampleReason.CAPTION_WITHOUT_IMAGE,
                f"no image among {_names(parts)}; {_RULE}",
            )
        if not texts:
            raise BadSampleError(
                BadSampleReason.MISSING_CAPTION,
                f"neither a txt member nor a caption in json among {_names(parts)}; {_RULE}",
            )
        caption = next((text for text in texts if has_text(text)), texts[0])
        metadata = sample_metadata(_record(read)) if "json" in by_kind else {}
        data = read(image)
        rows: Mapping[str, Mapping[str, Any]] = {}
        if self._layers and self._layers.layers:
            stored = image_size(data)
            rows = layer_rows(
                self._layers,
                by_kind,
                read,
                num_real=len(texts),
                drawn_on=drawn_size(metadata, stored),
                stored=stored,
            )
        if self._has_lists:
            rows = {LAYER: caption_row(_decode(texts))}
        return RawPair(data, f".{image}", caption, rows, metadata)

    def _lists_captions(self) -> bool:
        """Return whether one of the first samples has several captions."""
        for path in self._tars.values():
            file = PreadFile(path)
            for _, parts in islice(complete_samples(file), _NUM_INSPECTED):
                by_kind = dict(parts)
                with suppress(BadSampleError):
                    if len(_captions(by_kind, partial(read_member, file, by_kind))) > 1:
                        return True
        return False

    def _inspect(self) -> ReinforcedLayers | None:
        """Return the layers that the first samples provide."""
        for path in self._tars.values():
            file = PreadFile(path)
            layers = inspect_tar(file, self._name)
            if layers is not None and layers.layers:
                _check_images(path, file)
            if layers is not None:
                return layers
        return None


def inspect_tar(file: PreadFile, name: str) -> ReinforcedLayers | None:
    """Return the layers that a tar's first samples bring, None if it has no sample."""
    return inspect_samples(
        (
            (by_kind := dict(parts), partial(read_member, file, by_kind))
            for _, parts in complete_samples(file)
        ),
        name,
    )


def _check_images(path: Path, file: PreadFile) -> None:
    """Refuse a tar whose first samples have a reinforcement and no image, as it is published."""
    kinds = {
        f".{kind}"
        for _, parts in itertools.islice(complete_samples(file), MAX_INSPECTED)
        for kind, _ in parts
    }
    if kinds.isdisjoint(IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES):
        raise SourceError(
            f"{path} holds reinforcements without images",
            expected="tars with an image and a caption a sample",
            action="shard the images that the reinforcements are of, then run "
            "`clipmill data import-reinforcements DATASET TARS`",
        )


def complete_samples(file: PreadFile) -> Iterator[Sample]:
    """Yield a tar's samples up to its end, or to where it's damaged."""
    with suppress(TruncatedTarError):
        yield from samples(file, 0, file.size)


def read_member(file: PreadFile, members: dict[str, Member], kind: str) -> bytes:
    """Return a member of a sample by what follows the key in its name; raises BadSampleError."""
    member = members[kind]
    if member.is_sparse:
        raise BadSampleError(
            BadSampleReason.DAMAGED_RECORD,
            f"{member.name} is a sparse member, which isn't read: write the tar without --sparse",
        )
    data = file.read(member.offset, member.size)
    if len(data) < member.size:
        raise BadSampleError(BadSampleReason.TRUNCATED_TAR, f"{member.name} ends early")
    return data


def _captions(members: dict[str, Member], read: Callable[[str], bytes]) -> list[bytes | str]:
    """The real captions: ``txt`` is one, or a JSON list of several (DataCompDR); else ``json``."""
    if "txt" in members:
        data = read("txt")
        if data.lstrip().startswith(b"["):
            try:
                several = json.loads(data)
            except ValueError:
                return [data]
            if isinstance(several, list) and several and all(isinstance(t, str) for t in several):
                return list(several)
        return [data]
    if "json" in members:
        try:
            caption = json.loads(read("json")).get("caption")
        except (ValueError, AttributeError) as error:
            raise BadSampleError(BadSampleReason.DAMAGED_RECORD, f"json: {error}") from error
        texts = caption if isinstance(caption, list) else [caption]
        return [text for text in texts if isinstance(text, str)]
    return []


def _decode(texts: list[bytes | str]) -> list[str]:
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in texts]
    except UnicodeDecodeError as error:
        raise BadSampleError(BadSampleReason.CAPTION_NOT_UTF8, str(error)) from error


def _record(read: Callable[[str], bytes]) -> dict[str, Any]:
    """Return a sample's json; empty if it's damaged, which the caption decides about."""
    try:
        value = json.loads(read("json"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _names(parts: list[tuple[str, Member]]) -> str:
    names = [member.name for _, member in parts[:_MAX_NAMED]]
    return ", ".join([*names, "..."] if len(parts) > _MAX_NAMED else names)


def samples(file: PreadFile, start: int, stop: int) -> Iterator[Sample]:
    """Yield the samples of a range; raises TruncatedTarError after the last complete one."""
    for run in _runs(file, start, stop):
        yield from _split_run(run)


def _samples_with_starts(file: PreadFile) -> Iterator[tuple[Sample, bool]]:
    """Yield a tar's samples, each with whether a range may begin at it; raises as ``samples``.

    Read from there on, the tar must have the same samples. Within a run that isn't so if its key
    goes on in the next run, which begins where a kind comes again, or if no image follows.
    """
    run: list[Member] = []
    try:
        for following in _runs(file, 0, file.size):
            yield from _with_starts(run, following)
            run = following
    except TruncatedTarError:
        yield from _with_starts(run, [])
        raise
    yield from _with_starts(run, [])


def _with_starts(run: list[Member], following: list[Member]) -> Iterator[tuple[Sample, bool]]:
    goes_on = bool(run and following) and _key(run[0].name)[0] == _key(following[0].name)[0]
    images = [m.header for m in run if _key(m.name)[1].endswith(IMAGE_SUFFIXES)]
    for index, sample in enumerate(_split_run(run)):
        header = sample[1][0][1].header
        yield sample, index == 0 or (not goes_on and bool(images) and header <= images[-1])


def _runs(file: PreadFile, start: int, stop: int) -> Iterator[list[Member]]:
    """Yield the runs of members of one key; raises TruncatedTarError after the last."""
    run: list[Member] = []
    kinds: set[str] = set()
    key = ""
    try:
        for member in members(file, start, stop):
            following, kind = _key(member.name)
            if not kind or not following or following.endswith("/"):
                continue
            if following != key or kind in kinds:
                if run:
                    yield run
                key, run, kinds = following, [], set()
            run.append(member)
            kinds.add(kind)
    except TruncatedTarError:
        if run:
            yield run
        raise
    if run:
        yield run


def _split_run(run: list[Member]) -> Iterator[Sample]:
    """Yield the sample of a run of members; those of one without an image by their last dots."""
    parts = [(*_key(member.name), member) for member in run]
    has_image = any(f".{kind}" in IMAGE_SUFFIXES for _, kind, _ in parts)
    if not has_image and any(kind.endswith(IMAGE_SUFFIXES) for _, kind, _ in parts):
        parts = [(*_key_to_last_dot(member.name), member) for member in run]
    for key, group in groupby(parts, key=lambda part: part[0]):
        yield key, [(kind, member) for _, kind, member in group]


def _key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key goes up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind.lower()


def _key_to_last_dot(name: str) -> tuple[str, str]:
    stem, _, kind = name.rpartition(".")
    return stem, kind.lower()


def _raise(error: Exception) -> RawPair:
    raise error


def members(file: PreadFile, start: int, stop: int) -> Iterator[Member]:
    """Yield the plain files whose headers begin in ``start`` to ``stop`` (byte offsets).

    Raises TruncatedTarError after the last complete member of a damaged or truncated tar; other
    kinds of members (folders, links, devices) are passed over.
    """
    end = file.size
    position = header = start
    extension: dict[str, str] = {}
    while position < min(stop, end):
        block = file.read(position, _BLOCK)
        if not block.strip(b"\0"):
            if len(block) == _BLOCK or extension:
                break  # the end mark: blocks of zeros
            raise TruncatedTarError(f"no whole header at byte {position}")
        kind, size = _check(block, position)
        offset = position + _BLOCK
        offset += _sparse_map_bytes(file, block, offset) if kind == b"S" else 0
        following = offset + -(-size // _BLOCK) * _BLOCK
        if kind in b"LxgK":
            if size > _MAX_EXTENSION_BYTES:
                raise TruncatedTarError(f"an extended header of {size} bytes at byte {position}")
            content = file.read(offset, size)
            if len(content) < size:
                raise TruncatedTarError(f"ends within the member at byte {position}")
            if kind == b"L":
                extension["path"] = _text(content.rstrip(b"\0"))
            elif kind == b"x":
                extension |= _pax(content, position)
            position = following
            continue
        if "size" in extension:
            size = _number(extension["size"], position)
            following = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > end:
            raise TruncatedTarError(f"ends within the member at byte {position}")
        if kind in b"0S\0":
            is_sparse = kind == b"S" or _SPARSE in extension
            name = extension.get("path") or _name(block)
            yield Member(name, header, offset, size, is_sparse)
        extension = {}
        position = header = following
    if extension:
        raise TruncatedTarError(f"a name without its member at byte {header}")


def _sparse_map_bytes(file: PreadFile, block: bytes, offset: int) -> int:
    """Return the bytes of a sparse member's map that follow its header (GNU's old format)."""
    start, is_extended = offset, block[482:483]
    while is_extended not in (b"", b"\0"):
        is_extended = file.read(offset + 504, 1)
        offset += _BLOCK
    return offset - start


def _check(block: bytes, position: int) -> tuple[bytes, int]:
    """The kind and size that a header states, if its checksum is right."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"x", 8)
        # Sizes past 8 GiB are binary, marked by the first bit (GNU).
        binary = block[124] & 0x80
        size = int.from_bytes(block[125:136]) if binary else int(block[124:136].strip(b" \0"), 8)
    except (ValueError, IndexError) as error:
        raise TruncatedTarError(f"no header at byte {position}") from error
    # The checksum is taken with its own field as spaces.
    if len(block) < _BLOCK or sum(block) - sum(block[148:156]) + 8 * 0x20 != stated or size < 0:
        raise TruncatedTarError(f"no header at byte {position}")
    return block[156:157], size


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _pax(content: bytes, position: int) -> dict[str, str]:
    """The path, size and sparseness of PAX records, each ``length key=value newline``."""
    records: dict[str, str] = {}
    while content:
        length, _, rest = content.partition(b" ")
        size = _number(_text(length), position)
        record = rest[: size - len(length) - 2]
        if size > len(content) or size < len(length) + 3:
            raise TruncatedTarError(f"broken records in the header at byte {position}")
        key, _, value = record.partition(b"=")
        if key in (b"path", b"size"):
            records.setdefault(key.decode(), _text(value))
        elif key.startswith(b"GNU.sparse."):
            records[_SPARSE] = "1"
            if key == b"GNU.sparse.name":  # the path is that of a stand-in
                records["path"] = _text(value)
        content = content[size:]
    return records


def _number(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise TruncatedTarError(f"a length of {text[:20]!r} in the header at byte {position}")
    return int(text)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")

"""WebDataset tars: a sample is the run of members whose names share what precedes the first dot.

Beside an image and a caption (``txt``, or ``caption`` in ``json``), the keys of DataCompDR's
release are understood (see ``reinforced.py``).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from clipmill.data.sources.contract import (
    IMAGE_SUFFIXES,
    Entry,
    Identity,
    RawPair,
    ReadListing,
    Source,
    Split,
)
from clipmill.data.sources.files import Descriptor, files_digest
from clipmill.data.sources.paths import matching_files, relative_names
from clipmill.data.sources.reinforced import Reinforcement, layer_rows, see_reinforcement
from clipmill.data.sources.tar_members import CutTarError, Member, members
from clipmill.errors import BadSampleError

Sample = tuple[str, list[tuple[str, Member]]]
"""A sample's key (its members' common name) and its members by what follows the first dot."""


class WebDatasetSource(Source):
    """The samples of one tar or many, in the order of the tars' names and of their members."""

    def __init__(self, path: str, *, layers: str = "datacompdr") -> None:
        """``path`` as for ``matching_files``.

        ``layers`` names the layers that DataCompDR's keys become; none are made if it's empty.
        """
        base, files = matching_files(path, (".tar",))
        self._tars = relative_names(base, files)
        self.uri = f"webdataset:{Path(path).absolute()}?layers={layers}"
        self._name = layers
        self._kind = self._see() if layers else None
        self.layers = self._kind.layers if self._kind else ()

    def digest(self, identity: Identity) -> str:
        """SHA-256 (hex) over the tars."""
        return files_digest(self._tars.items(), identity, self._name)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the headers of all members; a split never spans two tars."""
        for name in self._tars:
            yield from self._split_tar(name, size)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The samples of a range of one tar; where the tar is cut, one entry says so."""
        file = Descriptor(self._tars[split.piece])
        try:
            for key, parts in _samples(file, split.start, split.stop):
                yield Entry(f"{split.piece}/{key}", partial(self._load, file, parts))
        except CutTarError as error:
            yield Entry(split.piece, partial(_raise, BadSampleError("cut-tar", str(error))))

    def _split_tar(self, name: str, size: int) -> Iterator[Split]:
        file = Descriptor(self._tars[name])
        start = stop = count = 0
        try:
            for _, parts in _samples(file, 0, file.size):
                if count == size:
                    stop = parts[0][1].header
                    yield Split(name, start, stop, count)
                    start, count = stop, 0
                count += 1
        except CutTarError:
            count += 1  # the entry that says so
        if count:
            yield Split(name, start, file.size, count)

    def _load(self, file: Descriptor, parts: list[tuple[str, Member]]) -> RawPair:
        found = dict(reversed(parts))  # of two members of one name, the first counts
        read = partial(_read, file, found)
        image = next((kind for kind, _ in parts if f".{kind.lower()}" in IMAGE_SUFFIXES), None)
        texts = _captions(found, read)
        if image is None:
            raise BadSampleError("caption-without-image", "the sample's members hold no image")
        if not texts:
            raise BadSampleError("no-caption", "neither a txt member nor a caption in json")
        rows = layer_rows(self._kind, found, read, len(texts)) if self._kind else {}
        return RawPair(read(image), f".{image.lower()}", texts[0], rows)

    def _see(self) -> Reinforcement | None:
        """What the first sample brings."""
        for path in self._tars.values():
            file = Descriptor(path)
            try:
                for _, parts in _samples(file, 0, file.size):
                    found = dict(reversed(parts))
                    return see_reinforcement(found, partial(_read, file, found), self._name)
            except CutTarError:
                continue
        return None


def _read(file: Descriptor, found: dict[str, Member], kind: str) -> bytes:
    member = found[kind]
    data = file.read(member.offset, member.size)
    if len(data) < member.size:
        raise BadSampleError("cut-tar", f"{member.name} ends early")
    return data


def _captions(found: dict[str, Member], read: Callable[[str], bytes]) -> list[bytes | str]:
    """The real captions: ``txt`` is one, or a JSON list of several (DataCompDR); else ``json``."""
    if "txt" in found:
        data = read("txt")
        if data.lstrip().startswith(b"["):
            try:
                several = json.loads(data)
            except ValueError:
                return [data]
            if isinstance(several, list) and several and all(isinstance(t, str) for t in several):
                return list(several)
        return [data]
    if "json" in found:
        try:
            caption = json.loads(read("json")).get("caption")
        except (ValueError, AttributeError) as error:
            raise BadSampleError("broken-record", f"json: {error}") from error
        return [caption] if isinstance(caption, str) else []
    return []


def _samples(file: Descriptor, start: int, stop: int) -> Iterator[Sample]:
    """Yield the samples of a range; where the tar is cut, those before it, then CutTarError."""
    key: str | None = None
    parts: list[tuple[str, Member]] = []
    try:
        for member in members(file, start, stop):
            following, kind = _key(member.name)
            if following != key:
                if key is not None:
                    yield key, parts
                key, parts = following, []
            parts.append((kind, member))
    except CutTarError:
        if key is not None:
            yield key, parts
        raise
    if key is not None:
        yield key, parts


def _key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key goes up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind


def _raise(error: Exception) -> RawPair:
    raise error

"""Sources of image-text pairs, one external format per module, and a registry of their kinds.

A source is named by a spec: ``KIND:PATH?OPTION=VALUE&...``, or a path whose kind is detected.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from clipmill.data.dataset import cache_folder
from clipmill.data.sources.base import (
    IMAGE_SUFFIXES,
    REASONS,
    Entry,
    FingerprintMode,
    RawPair,
    Source,
    Split,
)
from clipmill.data.sources.coco import CocoSource
from clipmill.data.sources.folder import FolderSource
from clipmill.data.sources.img2dataset import Img2datasetSource
from clipmill.data.sources.tables import ParquetSource, hugging_face_source
from clipmill.data.sources.text_tables import DelimitedSource, ImageFolderSource, JsonLinesSource
from clipmill.data.sources.urls import URL_OPTIONS, UrlSource
from clipmill.data.sources.webdataset import WebDatasetSource
from clipmill.errors import SourceError
from clipmill.storage import absolute_uri, exists, unpack_dir

__all__ = [
    "REASONS",
    "SOURCES",
    "Entry",
    "FingerprintMode",
    "FolderSource",
    "RawPair",
    "Source",
    "SourceKind",
    "Split",
    "open_source",
]

# Files looked at to tell what a folder holds: all of a mixed one, the first of a vast one.
_MAX_INSPECTED_FILES = 10_000

_TAR = re.compile(r"(.+?\.tar)((?:[/?].*)?)$")

_BY_SUFFIX = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
}


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source spec, taken apart."""

    kind: str
    path: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceKind:
    """Opener of a kind of source."""

    open: Callable[..., Source]
    """Takes the path, and the options by name."""
    options: tuple[str, ...] = ()
    """The options that a spec may give."""


def _folder(path: str) -> Source:
    return FolderSource(Path(path))


_COLUMNS = ("image", "caption", "id")

_TEXT_OPTIONS = (*_COLUMNS, "images", "delimiter", "quote")

SOURCES: Mapping[str, SourceKind] = {
    "folder": SourceKind(_folder),
    "csv": SourceKind(DelimitedSource, _TEXT_OPTIONS),
    "tsv": SourceKind(partial(DelimitedSource, kind="tsv"), _TEXT_OPTIONS),
    "jsonl": SourceKind(JsonLinesSource, (*_COLUMNS, "images")),
    "imagefolder": SourceKind(ImageFolderSource, _COLUMNS),
    "parquet": SourceKind(ParquetSource, (*_COLUMNS, "images")),
    "coco": SourceKind(CocoSource, ("images",)),
    "webdataset": SourceKind(WebDatasetSource, ("layers",)),
    "img2dataset": SourceKind(Img2datasetSource),
    "hf": SourceKind(hugging_face_source, (*_COLUMNS, "split")),
    "urls": SourceKind(UrlSource, URL_OPTIONS),
}


def open_source(spec: str) -> Source:
    """The source that ``spec`` names, perhaps in a folder packed by ``clipmill data pack``.

    A path in such a folder follows the tar's: ``csv:s3://bucket/pairs.tar/pairs.csv?image=file``.

    Raises SourceError where there is none, its kind can't be told, or an option is unknown.
    """
    if packed := _packed(spec):
        prefix, tar, rest = packed
        folder = unpack_dir(tar, cache_folder())
        source = open_source(f"{prefix}{folder}{rest}")
        # The cache is another folder on each machine.
        source.uri = f"{prefix}{absolute_uri(tar)}{rest}"
        return source
    kind_name, path = _split_kind(spec)
    location = path.partition("?")[0]
    if "://" in location and kind_name != "urls:":
        raise SourceError(
            f"{location} is neither a local path nor a folder packed as .tar",
            expected="a local path (of a table, its images may lie at s3://), or the URI of a "
            ".tar that `clipmill data pack` made",
            action=_packing(location),
        )
    parsed = parse_spec(spec, SOURCES)
    kind = SOURCES[parsed.kind]
    unknown = parsed.options.keys() - set(kind.options)
    if unknown:
        raise SourceError(
            f"{', '.join(sorted(unknown))} is no option of a {parsed.kind} source",
            expected=f"options among {', '.join(kind.options)}" if kind.options else "no option",
            action="correct the part of the source after its `?`",
        )
    return kind.open(parsed.path, **parsed.options)


def _packed(spec: str) -> tuple[str, str, str] | None:
    """Return the kind with its colon, the packed tar, and the rest of a spec that has one."""
    kind, location = _split_kind(spec)
    found = _TAR.match(location)
    is_elsewhere = "://" in location and not location.startswith(("s3://", "file://"))
    if found is None or is_elsewhere or not exists(f"{found[1]}.sha256"):
        return None
    if kind == "webdataset:" and not found[2].startswith("/"):
        return None  # the tar is one of samples, and packed too
    return kind, found[1], found[2]


def _split_kind(spec: str) -> tuple[str, str]:
    """Return a spec's kind with its colon, empty if it has none, and the rest."""
    kind, _, rest = spec.partition(":")
    return (f"{kind}:", rest) if kind in SOURCES and not rest.startswith("//") else ("", spec)


def _packing(uri: str) -> str:
    """Return the command that makes a source at a URI usable."""
    if uri.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip")):
        target = f"{uri.removesuffix('.tar')}-packed.tar" if uri.endswith(".tar") else "URI.tar"
        return f"pack it, or the folder it's from: clipmill data pack {uri} {target}"
    return f"pack the folder, clipmill data pack FOLDER {uri.rstrip('/')}.tar, or mount the bucket"


def parse_spec(text: str, kinds: Iterable[str]) -> SourceSpec:
    """Take ``text`` apart, and see what kind of source it is if it doesn't say so.

    Raises SourceError if the kind can't be told.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in kinds or rest.startswith("//"):
        kind, rest = "", text
    path, options = rest, {}
    if not Path(rest).exists():  # a file may have a question mark in its name
        path, mark, query = rest.rpartition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        if mark and "=" in query:
            options = dict(pairs)
        else:
            path = rest
    return SourceSpec(kind or _detect_kind(path, list(kinds)), path, options)


def _detect_kind(path: str, kinds: list[str]) -> str:
    root = Path(path)
    name = root.name.lower()
    suffix = next((each for each in _BY_SUFFIX if name.endswith(each)), root.suffix.lower())
    if root.is_dir():
        matches = _kinds_of_folder(root)
    elif suffix in _BY_SUFFIX:
        matches = [_BY_SUFFIX[suffix]]
    else:
        matches = ["coco"] if suffix == ".json" and _is_coco(root) else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        what = "could be any of " + ", ".join(matches)
    else:
        what = "is no source of a known kind" if root.exists() else "doesn't exist"
    raise SourceError(
        f"{path} {what}",
        expected="a folder of images with .txt files, a table (.csv, .tsv, .jsonl, .parquet), a "
        "COCO captions .json, WebDataset .tar files, an img2dataset output or a Hugging Face "
        "dataset",
        action=f"check the path, or say which it is: KIND:{path} with KIND one of "
        + ", ".join(matches or kinds),
    )


def _kinds_of_folder(folder: Path) -> list[str]:
    names = (name for _, _, names in os.walk(folder) for name in names)
    seen = [f"/{name.lower()}" for name in itertools.islice(names, _MAX_INSPECTED_FILES)]

    def any_ends(*suffixes: str) -> bool:
        return any(name.endswith(suffixes) for name in seen)

    if any(folder.glob("*_stats.json")):
        return ["img2dataset"]
    if any_ends("/metadata.jsonl", "/metadata.csv"):
        return ["imagefolder"]
    kinds = []
    if any_ends(".arrow", ".parquet") or (folder / "dataset_info.json").is_file():
        kinds.append("hf")
    if any_ends(".tar"):
        kinds.append("webdataset")
    if any_ends(*IMAGE_SUFFIXES) or not kinds:
        kinds.append("folder")
    return kinds


def _is_coco(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and {"images", "annotations"} <= value.keys()

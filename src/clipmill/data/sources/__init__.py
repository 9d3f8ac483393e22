"""Where image-text pairs come from: one kind of source a file, and an entry here.

A source is named by a spec: a path whose kind is seen, or ``KIND:PATH?OPTION=VALUE&...``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clipmill.data.dataset import cache_folder
from clipmill.data.sources.base import (
    REASONS,
    Entry,
    FingerprintMode,
    RawPair,
    Source,
    Split,
)
from clipmill.data.sources.coco import CocoSource
from clipmill.data.sources.delimited import DelimitedSource
from clipmill.data.sources.folder import FolderSource
from clipmill.data.sources.hugging_face import hugging_face_source
from clipmill.data.sources.img2dataset import Img2datasetSource
from clipmill.data.sources.parquet import ParquetSource
from clipmill.data.sources.spec import parse_spec
from clipmill.data.sources.webdataset import WebDatasetSource
from clipmill.errors import SourceError
from clipmill.storage import exists, unpack_dir

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


@dataclass(frozen=True, slots=True)
class SourceKind:
    """How a kind of source is opened."""

    open: Callable[..., Source]
    """Takes the path, and the options by name."""
    options: tuple[str, ...] = ()
    """The options that a spec may give."""


def _folder(path: str) -> Source:
    return FolderSource(Path(path))


_COLUMNS = ("image", "caption", "id")
SOURCES: Mapping[str, SourceKind] = {
    "folder": SourceKind(_folder),
    "csv": SourceKind(DelimitedSource, (*_COLUMNS, "images")),
    "tsv": SourceKind(partial(DelimitedSource, delimiter="\t", kind="tsv"), (*_COLUMNS, "images")),
    "parquet": SourceKind(ParquetSource, (*_COLUMNS, "images")),
    "coco": SourceKind(CocoSource, ("images",)),
    "webdataset": SourceKind(WebDatasetSource, ("layers",)),
    "img2dataset": SourceKind(Img2datasetSource),
    "hf": SourceKind(hugging_face_source, _COLUMNS),
}


def open_source(spec: str) -> Source:
    """The source that ``spec`` names, or the folder packed at a ``.tar`` by ``pack_dir``.

    Raises SourceError where there is none, its kind can't be told, or an option is unknown.
    """
    if spec.endswith(".tar") and _is_packed(spec):
        return FolderSource(unpack_dir(spec, cache_folder()), spec)
    parsed = parse_spec(spec, SOURCES)
    if "://" in parsed.path:
        raise SourceError(
            f"{parsed.path} is neither a local path nor a folder packed as .tar",
            expected="a local path (of a table, its images may lie at s3://), or the URI of a "
            ".tar that pack_dir made",
            action="pack the folder with pack_dir, copy it here, or mount the bucket",
        )
    kind = SOURCES[parsed.kind]
    unknown = parsed.options.keys() - set(kind.options)
    if unknown:
        raise SourceError(
            f"{', '.join(sorted(unknown))} is no option of a {parsed.kind} source",
            expected=f"options among {', '.join(kind.options)}" if kind.options else "no option",
            action="correct the part of the source after its `?`",
        )
    return kind.open(parsed.path, **parsed.options)


def _is_packed(uri: str) -> bool:
    return not any(uri.startswith(f"{kind}:") for kind in SOURCES) and exists(f"{uri}.sha256")

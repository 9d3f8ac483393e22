"""A source as people write it: ``KIND:PATH?OPTION=VALUE&...``, or a path whose kind is seen."""

import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from clipmill.data.sources.base import IMAGE_SUFFIXES
from clipmill.errors import SourceError

# Files looked at to tell what a folder holds: all of a mixed one, the first of a vast one.
_MAX_INSPECTED_FILES = 10_000
_BY_SUFFIX = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source spec, taken apart."""

    kind: str
    path: str
    options: dict[str, str] = field(default_factory=dict)


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
    suffix = root.suffix.lower()
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
        expected="a folder of images with .txt files, a table (.csv, .tsv, .parquet), a COCO "
        "captions .json, WebDataset .tar files, an img2dataset output or a Hugging Face dataset",
        action=f"check the path, or say which it is: KIND:{path} with KIND one of "
        + ", ".join(matches or kinds),
    )


def _kinds_of_folder(folder: Path) -> list[str]:
    names = (name for _, _, names in os.walk(folder) for name in names)
    seen = [name.lower() for name in itertools.islice(names, _MAX_INSPECTED_FILES)]

    def any_ends(*suffixes: str) -> bool:
        return any(name.endswith(suffixes) for name in seen)

    if any(folder.glob("*_stats.json")):
        return ["img2dataset"]
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

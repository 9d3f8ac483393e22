"""Folders of labeled data: fetched from their URI, identified by content; classes of images.

Shapes: H image height, W image width.
"""

import csv
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import digest_json, sha256_bytes, sha256_file
from clipmill.data.dataset import cache_folder
from clipmill.data.labeled.options import (
    IMAGE_SUFFIXES,
    ClassificationOptions,
    ClassList,
    MissingSplitError,
    is_hidden,
    list_files,
    read_options,
    renumber,
    split_names,
)
from clipmill.errors import SourceError
from clipmill.images import read_rgb
from clipmill.lineage import Parent
from clipmill.storage import atomic_write, read_digest, unpack_dir

_DIGEST_THREADS = 8
_PATH_COLUMNS = ("file_name", "filename", "image", "path", "filepath", "file", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "category", "class_name", "label_name", "target", "labels")
# Folders of a store with artifacts, whose names end in a part of their digest, and with records.
_STORE_FOLDERS = frozenset(
    (
        *("baselines", "captioners", "comparisons", "datasets", "encoders", "evaluations"),
        *("exports", "models", "predictions", "reports", "smoke_tests", "sources"),
        *("studies", "sweeps", "trials"),
    )
)
_STORE_RECORDS = frozenset({"runs", "serving"})
_ARTIFACT = re.compile(r"(?:.+-)?[0-9a-f]{12,16}(?:\.json)?")
_TABLE_SUFFIXES = (".csv", ".jsonl")


def fetch_folder(uri: str, role: str) -> tuple[Path, Parent]:
    """A local path of the folder at ``uri``, and what it is in a lineage.

    ``uri`` is a folder, or a ``.tar`` that ``clipmill data pack`` made. The digest covers the names
    and bytes of the files, without hidden ones and artifacts of a store within the folder. A file
    is read again only if its inode, size or times changed.
    """
    if uri.endswith(".tar"):
        return unpack_dir(uri, cache_folder()), folder_parent(uri, role)
    return Path(uri).absolute(), folder_parent(uri, role)


def folder_parent(uri: str, role: str) -> Parent:
    """What :func:`fetch_folder` returns of a lineage; a ``.tar`` isn't read."""
    if uri.endswith(".tar"):
        return Parent(role=role, uri=uri, digest=read_digest(uri))
    folder = Path(uri).absolute()
    if not folder.is_dir():
        raise SourceError(
            f"{uri} is not a folder",
            expected="a folder on this machine, or the URI of a .tar",
            action="check the path",
        )
    return Parent(role=role, uri=str(folder), digest=_content_digest(folder))


def _content_digest(folder: Path) -> str:
    index = cache_folder() / "digests" / f"{sha256_bytes(str(folder).encode())[:32]}.json"
    try:
        known = json.loads(index.read_bytes())
    except (OSError, ValueError):
        known = {}

    def entry(path: Path) -> tuple[str, list[Any]]:
        name, stat = path.relative_to(folder).as_posix(), path.stat()
        state = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        stored = known.get(name)
        digest = stored[-1] if stored and stored[:-1] == state else sha256_file(path)
        return name, [*state, digest]

    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        entries = dict(pool.map(entry, _without_artifacts(folder, list_files(folder))))
    if entries != known:
        try:
            with atomic_write(index) as path:
                path.write_text(json.dumps(entries))
        except OSError:  # a cache that can't be written only costs time
            pass
    return digest_json([[name, entries[name][-1]] for name in sorted(entries)])


def _without_artifacts(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the files without those of stores within the folder, which grow as it is used."""
    names = {path: path.relative_to(folder).parts for path in files}
    stores: set[tuple[str, ...]] = set()
    artifacts: set[Path] = set()
    for path, parts in names.items():
        for i, (kind, name) in enumerate(pairwise(parts)):
            if kind in _STORE_FOLDERS and _ARTIFACT.fullmatch(name):
                stores.add(parts[:i])
                artifacts.add(path)
    for path, parts in names.items():
        if any(parts[:i] in stores and kind in _STORE_RECORDS for i, kind in enumerate(parts[:-1])):
            artifacts.add(path)
    return [path for path in files if path not in artifacts]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Paths of images with the numbers of their classes, in order."""

    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    """Names of the classes by number."""
    passed_over: tuple[Path, ...] = ()
    """Files among the images that are none that can be read."""

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return image ``index``, RGB; SourceError if it can't be decoded."""
        return read_rgb(self.images[index])

    def image_HW3(self, index: int) -> NDArray[Any]:
        """The same as an array, uint8."""
        return np.asarray(self.image(index))

    @classmethod
    def open(cls, folder: Path, split: str, classes: Sequence[str] | None = None) -> "ImageFolder":
        """The images of a split, such as ``train``, in folders of classes or listed by a table.

        They are numbered by ``classes``; by the options' list of classes, or the split's own
        names, sorted, where it isn't given.

        Raises:
            SourceError: there are no images, or one's class isn't in the list.
        """
        options = read_options(folder, "classification", ClassificationOptions)
        listed = ClassList.read(folder, options.classes) if options.classes else None
        names = split_names(split, options.splits)
        tables = _tables(folder, names, options)
        table = next((path for path in tables if path.is_file()), None)
        root = next((folder / name for name in names if (folder / name).is_dir()), None)
        has_folders = root is not None and bool(_class_folders(root))
        uses_table = options.layout == "table" or (
            options.layout == "auto" and table is not None and not has_folders
        )
        passed_over: list[Path] = []
        if uses_table:
            if table is None:
                raise MissingSplitError(
                    f"{folder} has no table of {split}: none of "
                    + ", ".join(str(path.relative_to(folder)) for path in tables),
                    expected="CSV or JSON lines with the path and the class of each image",
                    action="write the table, or name it by the option `table` in "
                    "classification.json",
                )
            samples = _read_table(folder, table, split, options, listed)
            own = tuple(sorted({name for _, name in samples}, key=_numeric_first))
        else:
            folders = _class_folders(root) if root is not None else []
            samples, passed_over = _read_folders(folders)
            # A class without an image is one too.
            own = tuple(path.name for path in folders)
        if not samples:
            raise MissingSplitError(
                f"{folder} has no {split}/CLASS/*.jpg",
                expected="a folder of images for each class, below the split's folder, or a table",
                action="check the folder and the split's name",
            )
        own = listed.names if listed else own
        where = f"{folder}, {split}"
        numbers = dict(
            zip(own, renumber(own, own if classes is None else classes, where), strict=True)
        )
        unknown = next((name for _, name in samples if name not in numbers), None)
        if unknown is not None:
            raise SourceError(
                f"{where} has the class {unknown!r}, which the list of classes lacks",
                expected=f"one of {len(own)} listed classes",
                action="complete the list, or correct the label",
            )
        return cls(
            images=tuple(path for path, _ in samples),
            labels=tuple(numbers[name] for _, name in samples),
            classes=own if classes is None else tuple(classes),
            passed_over=tuple(passed_over),
        )


def _class_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(Path(p.name)))


def _numeric_first(name: str) -> tuple[bool, int, str]:
    """Sort whole numbers by value, before other names."""
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def _read_folders(folders: Sequence[Path]) -> tuple[list[tuple[Path, str]], list[Path]]:
    samples, passed_over = [], []
    for folder in folders:
        for path in list_files(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                samples.append((path, folder.name))
            else:
                passed_over.append(path)
    return samples, passed_over


def _tables(folder: Path, names: Sequence[str], options: ClassificationOptions) -> list[Path]:
    if options.table:
        return [folder / options.table.format(split=name) for name in names]
    each = [
        folder / place
        for name in names
        for suffix in _TABLE_SUFFIXES
        for place in (f"{name}{suffix}", f"{name}/metadata{suffix}")
    ]
    return [*each, *(folder / f"{n}{s}" for n in ("metadata", "labels") for s in _TABLE_SUFFIXES)]


def _read_table(
    folder: Path,
    table: Path,
    split: str,
    options: ClassificationOptions,
    listed: ClassList | None,
) -> list[tuple[Path, str]]:
    rows = _rows(table)
    columns = list(rows[0]) if rows else []
    image = _column(table, columns, options.image_column, _PATH_COLUMNS, "image_column")
    label = _column(table, columns, options.label_column, _LABEL_COLUMNS, "label_column")
    names = split_names(split, options.splits)
    if "split" in columns:
        rows = [row for row in rows if str(row["split"]) in names]
    elif table.stem in {"metadata", "labels"} and table.parent == folder:
        raise SourceError(
            f"{table} has no column `split`",
            expected=f"a column `split` with {split!r}, or a table for each split",
            action="add the column, or split the table into train.csv and val.csv",
        )
    root = folder / options.images.format(split=names[0]) if options.images else table.parent
    samples = []
    for number, row in enumerate(rows, start=1):
        if row.get(image) in {None, ""} or row.get(label) in {None, ""}:
            raise SourceError(
                f"{table}: entry {number} lacks {image} or {label}",
                expected="a path and a class in each entry",
                action="complete the entry, or take it out",
            )
        path, value = root / str(row[image]), row[label]
        if not path.is_file():
            raise SourceError(
                f"{path} is missing",
                expected=f"every image that {table} lists",
                action="restore the file, or take it out of the table",
            )
        samples.append((path, _class_name(value, listed)))
    return samples


def _class_name(value: Any, listed: ClassList | None) -> str:
    """Return a label's class; whole numbers are places in the list of classes, if there is one."""
    text = str(value).strip() if isinstance(value, str) else str(value)
    if listed and text not in listed.names and text.isdigit():
        ids = {
            place if entry.id is None else entry.id: entry.name
            for place, entry in enumerate(listed.entries)
        }
        return ids.get(int(text), text)
    return text


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    except (ValueError, csv.Error) as error:
        raise SourceError(
            f"{table} can't be read: {error}",
            expected="CSV with a header, or JSON lines, in UTF-8",
            action="correct the file",
        ) from error


def _column(
    table: Path, columns: Sequence[str], given: str, usual: Sequence[str], option: str
) -> str:
    if given in columns:
        return given
    name = next((c for c in usual if c in columns), None)
    if given or name is None:
        raise SourceError(
            f"{table} has the columns {', '.join(columns) or 'none'}",
            expected=f"{given!r}" if given else f"one of {', '.join(usual)}",
            action=f"set the option {option} in classification.json to one of its columns",
        )
    return name

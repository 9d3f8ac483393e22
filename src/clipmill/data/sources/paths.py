"""Which files a source's path means: one, a folder's, or those that a pattern matches."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipmill.errors import SourceError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def matching_files(path: str, suffixes: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files, sorted by these names.

    ``path`` is a file, a folder (with its subfolders), or a pattern with ``*``, ``?``,
    ``{a,b}`` and ``{00..12}``. Raises SourceError if there is none.
    """
    here = Path(path)
    if here.is_dir():
        found = sorted(_below(here, suffixes), key=os.fsencode)
        base = here
    elif here.is_file():
        found, base = [here], here.parent
    else:
        named = (Path(name) for pattern in expand_braces(path) for name in _glob(pattern))
        found = sorted({file for file in named if file.is_file()}, key=os.fsencode)
        base = Path(os.path.commonpath([file.parent for file in found])) if found else here
    if not found:
        raise SourceError(
            f"no file is meant by {path}",
            expected=f"a file, a folder with {', '.join(suffixes)} files, or a pattern",
            action="correct the path of the source",
        )
    return base, found


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
    """The files by their names below ``base``, with ``/``."""
    names = (os.fsencode(file.relative_to(base)) for file in files)
    texts = (name.decode("utf-8", "backslashreplace") for name in names)
    found = dict(zip(texts, files, strict=True))
    assert len(found) == len(files), "two names of one spelling"
    return found

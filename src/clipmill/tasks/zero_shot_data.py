"""Labelled pictures for zero-shot classification: ImageNet's layout, or WebDataset tars."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipmill.data.folder import open_folder
from clipmill.data.sources.contract import IMAGE_SUFFIXES
from clipmill.data.sources.files import Descriptor, files_digest
from clipmill.data.sources.paths import matching_files, relative_names
from clipmill.data.sources.tar_members import CutTarError, Member, members
from clipmill.errors import BadSampleError, SourceError
from clipmill.storage import Parent

LABEL_KEY = "cls"
"""What WebDataset calls the member that holds a sample's class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """A picture's file and its class; one of the two says why it can't be used."""

    data: bytes
    """The image file."""
    label: str
    """The class: its name, or its number as digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPictures:
    """A set of labelled pictures, not read yet."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their ids; empty where only numbers are known."""
    files: tuple[tuple[Path, int], ...] = ()
    """Pictures of a folder, with the number of the class of each."""
    tars: tuple[Path, ...] = ()
    """Or tars of pictures."""
    parent: Parent
    """What it is in a lineage."""

    def __iter__(self) -> Iterator[LabelledImage | BadSampleError]:
        """Every picture, or why a sample has none, in order."""
        for path, label in self.files:
            yield LabelledImage(data=path.read_bytes(), label=str(label))
        for tar in self.tars:
            yield from _samples(tar)


def open_pictures(uri: str, split: str) -> ClassPictures:
    """The pictures at ``uri``: a folder ``[SPLIT/]CLASS/*``, or tars (a folder, glob or file).

    A tar's sample is an image with ``cls``: a class's number, or its name. ``classnames.txt`` in
    the tars' folder, a line a class, gives the classes' names (as clip_benchmark's sets have it).

    Raises:
        SourceError: there are no pictures.
    """
    here = Path(uri)
    if "*" in uri or _holds_tars(here) or _is_plain_tar(here):
        base, found = matching_files(uri, (".tar",))
        tars = relative_names(base, found)
        digest = files_digest(tars.items(), "listing", LABEL_KEY)
        names = (here if here.is_dir() else here.parent) / "classnames.txt"
        classes = names.read_text("utf-8").splitlines() if names.is_file() else []
        return ClassPictures(
            classes=tuple(name.strip() for name in classes if name.strip()),
            tars=tuple(tars.values()),
            parent=Parent(role="data", uri=str(here.absolute()), digest=digest),
        )
    folder, parent = open_folder(uri, "data")
    root = folder / split
    classes = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES or path.suffix == ".JPEG"
    ]
    if not files:
        raise SourceError(
            f"{root} has no CLASS/*.jpg, and {uri} no .tar",
            expected="a folder of pictures for each class, or WebDataset tars with `cls`",
            action="check the folder, and the split's name (--set split=... ; empty for none)",
        )
    return ClassPictures(classes=tuple(classes), files=tuple(files), parent=parent)


def _holds_tars(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.tar"))


def _is_plain_tar(path: Path) -> bool:
    """A tar of samples, rather than a folder packed by ``put_tree``, which has a digest by it."""
    return path.suffix == ".tar" and path.is_file() and not Path(f"{path}.sha256").exists()


def _samples(tar: Path) -> Iterator[LabelledImage | BadSampleError]:
    file = Descriptor(tar)
    sample: dict[str, Member] = {}
    key = ""
    try:
        for member in members(file, 0, file.size):
            folder, slash, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            if f"{folder}{slash}{stem}" != key and sample:
                yield _read(file, key, sample)
                sample = {}
            key = f"{folder}{slash}{stem}"
            sample.setdefault(kind.lower(), member)
        cut = None
    except CutTarError as error:
        cut = BadSampleError("cut-tar", f"{tar}: {error}")
    if sample:
        yield _read(file, key, sample)
    if cut:
        yield cut


def _read(file: Descriptor, key: str, sample: dict[str, Member]) -> LabelledImage | BadSampleError:
    image = next((m for kind, m in sample.items() if f".{kind}" in IMAGE_SUFFIXES), None)
    label = sample.get(LABEL_KEY)
    if image is None or label is None:
        reason = "missing-image" if image is None else "no-label"
        return BadSampleError(reason, f"{file.path}: {key} has {', '.join(sample)}")
    text = file.read(label.offset, label.size).decode("utf-8", "backslashreplace").strip()
    return LabelledImage(data=file.read(image.offset, image.size), label=text)

"""Raw image-text pairs in a folder: ``name.jpg`` with its caption in ``name.txt`` beside it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clipmill.data.images import decode_rgb, image_size
from clipmill.errors import BadSampleError, SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_SUFFIX = ".txt"

# Why an item can't be used, and what each reason means; quarantine is counted by these.
REASONS = {
    "no-caption": "an image without a text file of its name beside it",
    "caption-without-image": "a text file without an image of its name beside it",
    "empty-caption": "the text file holds nothing but white space",
    "caption-not-utf8": "the text file isn't UTF-8",
    "empty-file": "the image file has no bytes",
    "unreadable-image": "the image is cut, broken, or neither JPEG, PNG nor WebP",
    "image-too-large": "the header claims more pixels than the limit",
    "image-too-small": "a side is shorter than the limit",
}

UID_LENGTH = 20


@dataclass(frozen=True, slots=True)
class SourceItem:
    """Names of one image with its caption, of which one may be missing."""

    origin: str
    """The image's (or lone caption's) path relative to the source, with ``/``."""
    image: Path | None
    caption: Path | None


@dataclass(frozen=True, slots=True)
class Pair:
    """An image-text pair that was read and checked."""

    uid: str
    """UID_LENGTH hex digits of the SHA-256 over origin and image bytes."""
    image_bytes: bytes
    suffix: str
    """The image file's suffix in lower case, with its dot."""
    caption: str
    width: int
    """Pixels of the upright picture."""
    height: int
    origin: str


class FolderSource:
    """The pairs in a folder and its subfolders, in the order of their relative names.

    Hidden files and folders, files of other suffixes, and folders that are symbolic links are
    passed over. The folder must stay unchanged while it's in use.
    """

    def __init__(self, folder: Path) -> None:
        """List the names in ``folder``; raises SourceError if it's missing or has no image."""
        if not folder.is_dir():
            raise SourceError(
                f"{folder} is not a folder",
                expected="a folder of images, each with its caption in a .txt file beside it",
                action="correct the path of the source",
            )
        self.folder = folder
        self.items = _pair_up(folder, sorted(_files_under(folder), key=os.fsencode))
        if not any(item.image for item in self.items):
            raise SourceError(
                f"{folder} holds no image",
                expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}, in any subfolder",
                action="correct the path of the source, or convert the images",
            )

    def digest(self) -> str:
        """SHA-256 (hex) over the name and content of every image and caption."""
        total = hashlib.sha256()
        for item in self.items:
            for path in (item.image, item.caption):
                name = os.fsencode(path.relative_to(self.folder)) if path else b""
                content = hashlib.sha256(_read(path)).digest() if path else b""
                total.update(len(name).to_bytes(4, "big") + name + content)
        return total.hexdigest()

    def read(self, index: int, *, max_pixels: int, min_side: int) -> Pair:
        """Read item ``index`` and decode its image as a proof that it can be.

        ``max_pixels`` bounds width x height, ``min_side`` the shorter side in pixels. Raises
        BadSampleError with one of REASONS, and SourceError if a file can't be read at all:
        that is the machine's fault, and a later run may find the sample good.
        """
        item = self.items[index]
        if item.image is None:
            raise BadSampleError("caption-without-image", f"no image beside {item.origin}")
        if item.caption is None:
            raise BadSampleError("no-caption", f"no {CAPTION_SUFFIX} file beside {item.origin}")
        caption = _decode_caption(_read(item.caption))
        data = _read(item.image)
        if not data:
            raise BadSampleError("empty-file", "0 bytes")
        width, height = image_size(data)
        if width * height > max_pixels:
            raise BadSampleError("image-too-large", f"{width} x {height} pixels")
        if min(width, height) < min_side:
            raise BadSampleError("image-too-small", f"{width} x {height} pixels")
        upright = decode_rgb(data)
        uid = hashlib.sha256(item.origin.encode() + b"\0" + data).hexdigest()[:UID_LENGTH]
        return Pair(
            uid=uid,
            image_bytes=data,
            suffix=item.image.suffix.lower(),
            caption=caption,
            width=upright.width,
            height=upright.height,
            origin=item.origin,
        )


def _files_under(folder: Path) -> Iterator[PurePosixPath]:
    """Yield the relative names of the plain files in ``folder`` and below, none hidden."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            for name in _files_under(Path(entry.path)):
                yield entry.name / name
        elif entry.is_file():
            yield PurePosixPath(entry.name)


def _pair_up(folder: Path, names: list[PurePosixPath]) -> tuple[SourceItem, ...]:
    captions = {n.with_suffix(""): n for n in names if n.suffix.lower() == CAPTION_SUFFIX}
    images = [n for n in names if n.suffix.lower() in IMAGE_SUFFIXES]
    orphans = captions.keys() - {n.with_suffix("") for n in images}
    items = [_item(folder, n, n, captions.get(n.with_suffix(""))) for n in images]
    items += [_item(folder, captions[stem], None, captions[stem]) for stem in orphans]
    return tuple(sorted(items, key=lambda item: item.origin))


def _item(
    folder: Path,
    name: PurePosixPath,
    image: PurePosixPath | None,
    caption: PurePosixPath | None,
) -> SourceItem:
    # A name that isn't UTF-8 is spelled with \xNN, so that every record of it can be.
    origin = os.fsencode(name).decode("utf-8", "backslashreplace")
    paths = (None if path is None else folder / path for path in (image, caption))
    return SourceItem(origin, *paths)


def _decode_caption(data: bytes) -> str:
    try:
        caption = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSampleError("caption-not-utf8", str(error)) from error
    if not caption:
        raise BadSampleError("empty-caption", "nothing but white space")
    return caption


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(
        f"{path} can't be read: {error.strerror}",
        expected="a source whose files this process may read, and that nobody changes meanwhile",
        action="mend permissions or the disk, and run again: finished shards are kept",
    )

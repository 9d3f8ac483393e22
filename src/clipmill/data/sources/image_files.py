"""Reading the images that a table names: local paths or ``s3://`` objects."""

from pathlib import Path

from clipmill.data.sources.files import read_file
from clipmill.errors import BadSampleError, NotFoundError, StorageError
from clipmill.storage import join, read_bytes
from clipmill.storage.store import check_key


class ImageFiles:
    """Files by the names that a table gives them."""

    def __init__(self, base: str) -> None:
        """``base``: the folder or ``s3://`` URI that relative names are relative to."""
        self.base = base if "://" in base else str(Path(base).absolute())

    def read(self, name: str) -> bytes:
        """The bytes of an image; raises BadSampleError (``missing-image``) if it isn't there.

        SourceError and StorageError where it is, and can't be read.
        """
        uri = name if "://" in name or name.startswith("/") else join(self.base, name)
        if not _could_exist(uri):
            raise BadSampleError("missing-image", f"nothing lies at {spell(name)}")
        try:
            return read_bytes(uri) if "://" in uri else read_file(uri)
        except NotFoundError as error:
            raise BadSampleError("missing-image", f"nothing lies at {spell(name)}") from error


def _could_exist(uri: str) -> bool:
    """Whether a local file is there, or an object may be: a bad name is its row's fault."""
    try:
        if "://" in uri:
            check_key(uri.partition("://")[2].partition("/")[2])
            return True
        return Path(uri).is_file()
    except (OSError, StorageError):
        return False


def spell(name: str) -> str:
    r"""``name`` with all that UTF-8 can't hold as ``\xNN`` or ``\uNNNN``, for records."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_suffix(name: str, data: bytes) -> str:
    """The suffix of an image's name in lower case, or what its first bytes say without one."""
    suffix = Path(name).suffix.lower()
    if suffix in (".jpg", ".jpeg", ".png", ".webp"):
        return suffix
    if data.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if data[8:12] == b"WEBP" else ".jpg"

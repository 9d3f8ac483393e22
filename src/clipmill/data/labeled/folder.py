"""A folder of data, wherever it lies: on this machine, or packed at a URI."""

from pathlib import Path

from clipmill.config import digest_json
from clipmill.data.dataset import cache_folder
from clipmill.errors import SourceError
from clipmill.lineage import Parent
from clipmill.storage import read_bytes, unpack_dir


def fetch_folder(uri: str, role: str) -> tuple[Path, Parent]:
    """A local path of the folder at ``uri``, and what it is in a lineage.

    ``uri`` is a folder, or a ``.tar`` made by ``pack_dir``. A folder's digest covers its files'
    names and sizes; a tar's covers all bytes.
    """
    if uri.endswith(".tar"):
        digest = read_bytes(f"{uri}.sha256").decode().strip()
        return unpack_dir(uri, cache_folder()), Parent(role=role, uri=uri, digest=digest)
    folder = Path(uri).absolute()
    if not folder.is_dir():
        raise SourceError(
            f"{uri} is not a folder",
            expected="a folder on this machine, or the URI of a .tar",
            action="check the path",
        )
    listing = sorted(
        [str(p.relative_to(folder)), p.stat().st_size] for p in folder.rglob("*") if p.is_file()
    )
    return folder, Parent(role=role, uri=str(folder), digest=digest_json(listing))

"""A folder as one tar at a URI, and local, verified copies of what lies at URIs."""

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from clipmill.config import sha256_bytes, sha256_file
from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.storage.local import LocalStore, atomic_write, temporary_path
from clipmill.storage.store import TEMPORARY_PREFIX
from clipmill.storage.uri import split_uri


def pack_dir(folder: Path, uri: str, *, leave_out: Callable[[Path], bool] | None = None) -> str:
    """Pack ``folder`` into a tar at ``uri`` and return the tar's SHA-256 as hex digits.

    Equal trees give equal bytes: names are sorted; times, owners and all of the modes but the
    executable bit are left out; links to files are packed as those files. The digest is kept
    beside the tar, at ``uri`` + ``.sha256``: a second call for the same tree uploads nothing.
    ``leave_out`` takes paths relative to ``folder``.

    Raises ArtifactError for anything but files and folders, or another ending than ``.tar``.
    """
    store, key = split_uri(uri)
    if not key.endswith(".tar"):
        raise ArtifactError(
            f"can't pack a folder into {uri}",
            expected="a URI that ends in .tar",
            action="add .tar to the URI",
        )
    with tempfile.TemporaryDirectory(prefix="clipmill-pack-") as scratch:
        tar = Path(scratch) / "tree.tar"
        try:
            _pack(folder, tar, leave_out)
        except OSError as error:
            raise StorageError(
                f"can't pack {folder}: {error}",
                expected="files that this process may read, and space in the temporary folder",
                action="mend their permissions, or set TMPDIR to a folder on a larger disk",
            ) from error
        sha256 = sha256_file(tar)
        digest_line = f"{sha256}\n".encode()
        digest_key = f"{key}.sha256"
        if not (store.exists(key) and store.exists(digest_key)) or (
            store.get(digest_key) != digest_line or store.size(key) != tar.stat().st_size
        ):
            # The digest comes last: where it lies, the tar it speaks of is whole.
            store.put_file(key, tar)
            store.put(digest_key, digest_line)
    return sha256


def read_digest(uri: str) -> str:
    """Return the SHA-256 that ``pack_dir`` kept beside its tar.

    Raises NotFoundError without one, StorageError; ArtifactError where it's no digest.
    """
    store, key = split_uri(uri)
    try:
        data = store.get(f"{key}.sha256")
    except NotFoundError:
        if not store.exists(key):
            raise NotFoundError(
                f"there is no file {uri}",
                expected="a tar that `clipmill data pack` wrote",
                action=f"check the URI, or pack your folder: clipmill data pack FOLDER {uri}",
            ) from None
        raise NotFoundError(
            f"{uri} has no digest beside it: there is no {uri}.sha256",
            expected="a tar that `clipmill data pack` wrote, rather than `tar`",
            action=f"write its digest: clipmill data pack {uri} {uri}",
        ) from None
    return _check_hex(data.decode("ascii", "replace").strip(), uri)


def unpack_dir(uri: str, cache: Path) -> Path:
    """Return a folder under ``cache`` with what ``pack_dir`` packed at ``uri``.

    It's unpacked once for each URI and digest, and shared by all processes: don't write in
    it. Raises NotFoundError, StorageError; ArtifactError where the tar isn't the one that its
    digest speaks of, or would unpack outside its folder.
    """
    sha256 = read_digest(uri)
    folder = cache / f"{sha256_bytes(uri.encode())[:16]}-{sha256}"
    if folder.is_dir():
        return folder
    unpacked = temporary_path(folder)
    try:
        unpacked.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=TEMPORARY_PREFIX) as scratch:
            _unpack(fetch(uri, sha256, Path(scratch)), unpacked, uri)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was first; its folder holds the same bytes.
            if not folder.is_dir():
                raise
    except OSError as error:
        raise StorageError(
            f"can't unpack {uri} into {cache}: {error}",
            expected="a folder that this process may write in, on a disk with free space",
            action="mend the folder's permissions or disk, or give another cache folder",
        ) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def fetch(uri: str, sha256: str, cache: Path) -> Path:
    """Return a local file with the bytes at ``uri``, whose digest is ``sha256``.

    A file in a local folder is returned where it lies, after its digest is checked; any other
    is copied once to ``cache``. Raises NotFoundError, StorageError; ArtifactError where the
    digest differs.
    """
    store, key = split_uri(uri)
    if isinstance(store, LocalStore):
        store.size(key)  # NotFoundError, where there is nothing to check
        path = store.path(key)
        _check_digest(path, sha256, uri)
        return path
    path = cache / _check_hex(sha256, uri) / key
    if not path.is_file():
        with atomic_write(path) as temporary:
            store.get_file(key, temporary)
            _check_digest(temporary, sha256, uri)
    return path


def _check_hex(sha256: str, uri: str) -> str:
    # It becomes the name of a folder, and may come from a file that anyone can write.
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ArtifactError(
            f"{uri} has a recorded digest {sha256[:80]!r}",
            expected="a SHA-256 in 64 lower-case hex digits",
            action="write it again with the step that made it",
        )
    return sha256


def _check_digest(path: Path, sha256: str, uri: str) -> None:
    actual = sha256_file(path)
    if actual != sha256:
        raise ArtifactError(
            f"{uri} has the SHA-256 {actual}",
            expected=sha256,
            action="it was cut or replaced: write it again with the step that made it",
        )


def _pack(folder: Path, tar: Path, leave_out: Callable[[Path], bool] | None) -> None:
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder}",
            expected="a folder to pack",
            action="check the path",
        )
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if leave_out and leave_out(path.relative_to(folder)):
                continue
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            if path.is_dir() and not path.is_symlink():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif path.is_file():
                info.size = path.stat().st_size
                info.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                with path.open("rb") as file:
                    archive.addfile(info, file)
            else:
                raise ArtifactError(
                    f"can't pack {path}",
                    expected="files and folders only: no links to folders, no sockets or devices",
                    action="remove it from the folder, or copy what it points at in its place",
                )


def unpack_archive(path: Path, folder: Path) -> None:
    """Unpack another tool's archive, ``.tar``, compressed or not, or ``.zip``, into a folder.

    Raises ArtifactError if it's damaged, or holds anything but files and folders below one root.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                archive.extract(member, folder)  # leaves out roots and `..` of names
        return
    _unpack(path, folder, str(path), mode="r:*")


def _unpack(tar: Path, folder: Path, uri: str, *, mode: Literal["r:", "r:*"] = "r:") -> None:
    try:
        with tarfile.open(tar, mode) as archive:
            for member in archive:
                _extract(archive, member, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ArtifactError(
            f"{uri} can't be unpacked: {error}",
            expected="a tar of files and folders below one root",
            action="pack it again with clipmill, and don't unpack this one elsewhere",
        ) from error


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member. Python 3.11.2, which is Debian's, has no filters for ``extractall``."""
    path = folder / member.name.lstrip("/")
    if ".." in Path(member.name).parts or not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is no file or folder below the root")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None, member.name
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)

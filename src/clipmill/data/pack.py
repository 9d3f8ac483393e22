"""Pack a folder of labeled data or pairs as a tar, for machines that share a store only."""

import shutil
import tempfile
from pathlib import Path

from clipmill.data.labeled.options import is_hidden
from clipmill.errors import SourceError
from clipmill.stage_records import ProgressCallback
from clipmill.storage import pack_dir, split_uri, unpack_archive

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def pack(source: str, uri: str, *, report: ProgressCallback) -> str:
    """Pack a folder, or another tool's archive of one, at ``uri``; return ``uri``.

    Hidden files are left out. A folder that is all that an archive holds stands for the archive.
    The tar and its digest appear whole or not at all, and equal folders are uploaded once.

    Raises:
        SourceError: ``source`` is neither a folder nor an archive, or holds no file.
        ArtifactError: the archive is damaged, or ``uri`` doesn't end in ``.tar``.
    """
    folder = Path(source)
    if folder.is_dir():
        _pack(folder, uri, report)
        return uri
    if not source.lower().endswith(ARCHIVE_SUFFIXES):
        raise SourceError(
            f"{source} is neither a folder nor an archive",
            expected=f"a folder on this machine, or a file ending in {', '.join(ARCHIVE_SUFFIXES)}",
            action="check the path",
        )
    with tempfile.TemporaryDirectory(prefix="clipmill-pack-") as scratch:
        report(0, 1, f"unpacking {source}")
        archive, unpacked = Path(scratch) / "archive", Path(scratch) / "tree"
        store, key = split_uri(source)
        store.get_file(key, archive)
        unpacked.mkdir()
        unpack_archive(archive, unpacked)
        archive.unlink()
        _pack(_top_folder(unpacked), uri, report)
    return uri


def _pack(folder: Path, uri: str, report: ProgressCallback) -> None:
    files = [path for path in folder.rglob("*") if not is_hidden(path.relative_to(folder))]
    num_files = sum(path.is_file() for path in files)
    if not num_files:
        raise SourceError(
            f"{folder} holds no file",
            expected="a folder of labeled data or of pairs",
            action="check the path",
        )
    report(0, 1, f"packing {num_files:,} files")
    pack_dir(folder, uri, leave_out=is_hidden)
    report(1, 1, f"packed {num_files:,} files")


def _top_folder(folder: Path) -> Path:
    """Return the folder that is all of an archive, as `tar cf x.tar x` makes it."""
    for hidden in [path for path in folder.iterdir() if is_hidden(Path(path.name))]:
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    entries = list(folder.iterdir())
    is_single = len(entries) == 1 and entries[0].is_dir()
    return _top_folder(entries[0]) if is_single else folder

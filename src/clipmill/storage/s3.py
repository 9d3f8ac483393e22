"""A store in an S3 bucket: SeaweedFS, Amazon's, or any other that speaks the protocol."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import urllib3
from minio import Minio
from minio.error import S3Error
from minio.helpers import DictType, check_bucket_name

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage.atomic import replacing
from clipmill.storage.s3_client import RetryPolicy, S3Settings, client_for
from clipmill.storage.s3_errors import S3_ERRORS, is_garbled, storage_error, store_failed
from clipmill.storage.store import Store, check_key

__all__ = ["RetryPolicy", "S3Settings", "S3Store"]

_T = TypeVar("_T")
# A file past this goes up in parts, three at once; no part is visible before the last is in.
_PART_BYTES: Final = 16 << 20
# S3 allows this many parts to an object.
_MAX_PARTS: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_CONTENT_RANGE: Final = re.compile(r"bytes \d+-(\d+)/")


class S3Store(Store):
    """Objects of one bucket under a prefix. The first ``put`` makes the bucket if missing.

    May be pickled, forked with, and used by many threads: clients belong to the process.
    """

    def __init__(
        self, bucket: str, prefix: str, settings: S3Settings, policy: RetryPolicy | None = None
    ) -> None:
        try:
            check_bucket_name(bucket, strict=True)
        except ValueError as error:
            raise StorageError(
                f"{bucket!r} isn't the name of an S3 bucket",
                expected="3 to 63 lower-case letters, digits, single dots and hyphens",
                action="correct the URI: s3://bucket/prefix",
            ) from error
        self.bucket = bucket
        self.prefix = f"{check_key(prefix)}/" if prefix else ""
        self.settings = settings
        self.policy = policy or RetryPolicy()
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        """Return the bytes of an object."""
        buffer = io.BytesIO()
        self._download(key, buffer)
        return buffer.getvalue()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return part of the bytes of an object."""
        assert min(start, length) >= 0, (start, length)
        if length == 0:
            # HTTP can't ask for a range of no bytes; that the object exists is still checked.
            self.size(key)
            return b""
        buffer = io.BytesIO()
        self._download(key, buffer, start, length)
        return buffer.getvalue()

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an object from bytes."""
        self._upload(key, io.BytesIO(data), len(data))

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            self._download(key, file)

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a local file."""
        try:
            with path.open("rb") as file:
                self._upload(key, file, path.stat().st_size)
        except OSError as error:
            raise StorageError(
                f"can't read {path}: {error}",
                expected="a file that this process may read, and that stays as it is",
                action="check the path and its permissions",
            ) from error

    def exists(self, key: str) -> bool:
        """Return whether an object lies at this key."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return the bytes that an object has."""
        with self._asking(key) as (client, name):
            size = client.stat_object(self.bucket, name).size
            assert size is not None
            return size

    def delete(self, key: str) -> None:
        """Remove an object, if it's there."""
        try:
            with self._asking(key) as (client, name):
                client.remove_object(self.bucket, name)
        except NotFoundError:
            return

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of objects that start with ``prefix``, sorted."""
        try:
            with self._asking(prefix, is_key=False) as (client, start):
                names = self._repeated(partial(self._listed, client, start))
        except NotFoundError:
            return
        # Not every server lists by code point: SeaweedFS goes folder by folder.
        yield from sorted(name.removeprefix(self.prefix) for name in names)

    def _listed(self, client: Minio, start: str) -> Sequence[str]:
        entries = client.list_objects(self.bucket, prefix=start, recursive=True)
        return [entry.object_name or "" for entry in entries if not entry.is_dir]

    def _upload(self, key: str, file: BinaryIO, num_bytes: int) -> None:
        with self._asking(key) as (client, name):
            self._repeated(partial(self._put, client, name, file, num_bytes))

    def _put(self, client: Minio, name: str, file: BinaryIO, num_bytes: int) -> None:
        part_bytes = max(_PART_BYTES, -(-num_bytes // _MAX_PARTS))
        try:
            file.seek(0)
            client.put_object(self.bucket, name, file, num_bytes, part_size=part_bytes)
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            self._make_bucket(client)
            file.seek(0)
            client.put_object(self.bucket, name, file, num_bytes, part_size=part_bytes)

    def _make_bucket(self, client: Minio) -> None:
        try:
            client.make_bucket(self.bucket)
        except S3Error as error:
            # Another task may have made it between our two requests.
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _download(self, key: str, file: BinaryIO, start: int = 0, length: int = 0) -> None:
        """Write an object's bytes to ``file``; anew, where its version changed on the way."""
        for _ in range(self.policy.attempts):
            file.seek(0)
            file.truncate()
            try:
                file.writelines(self._chunks(key, start, length))
            except _OtherVersionError:
                continue
            return
        what = f"its version changed in each of {self.policy.attempts} attempts to read it"
        raise self._failed(f"{self.prefix}{key}", what)

    def _chunks(self, key: str, start: int, length: int) -> Iterator[bytes]:
        """Yield an object's bytes (all from ``start`` if ``length`` is 0).

        The client repeats a failed request; here a body that breaks off is taken up where it
        broke, as long as each attempt brings something or attempts remain.
        """
        position, end, etag, fruitless = start, start + length, "", 0
        while not length or position < end:
            before = position
            with self._asking(key) as (client, name):
                response = self._repeated(
                    partial(self._open_part, client, name, position, end, etag)
                )
                if response is None:
                    return
                try:
                    etag = response.headers.get("ETag", "")
                    for chunk in response.stream(_CHUNK_BYTES):
                        position += len(chunk)
                        yield chunk
                    if _is_cut(response.headers.get("Content-Range", ""), position):
                        raise urllib3.exceptions.ProtocolError("an answer shorter than it says")
                except urllib3.exceptions.HTTPError:
                    fruitless = fruitless + 1 if position == before else 0
                    if fruitless >= self.policy.attempts:
                        raise
                else:
                    return
                finally:
                    response.close()
                    response.release_conn()

    def _open_part(
        self, client: Minio, name: str, position: int, end: int, etag: str
    ) -> urllib3.BaseHTTPResponse | None:
        """The answer with an object's bytes from ``position`` on; None past the object's end.

        ``etag`` is of the version whose first part we have: without If-Match, the rest of another
        one could follow. Raises _OtherVersionError if there is another by now.
        """
        headers: DictType = {"If-Match": etag} if etag else {}
        rest = max(0, end - position)
        if not (position or rest):
            # The answer to a range says how long it is, whatever cuts it on its way.
            headers["Range"] = "bytes=0-"
        try:
            response = client.get_object(self.bucket, name, position, rest, headers)
        except S3Error as error:
            if error.response.status == 416:
                return None
            if error.response.status == 412 and etag:
                raise _OtherVersionError from error
            raise
        if (position or rest) and response.status != 206:
            trouble = f"HTTP {response.status} where part of an object was asked for"
        elif etag and response.headers.get("ETag", "") != etag:
            trouble = ""
        else:
            return response
        response.close()
        response.release_conn()
        if trouble:
            raise self._failed(name, trouble)
        raise _OtherVersionError

    def _repeated(self, work: Callable[[], _T]) -> _T:
        """Do the work again, where an answer came that can't be understood.

        The client itself repeats requests that failed or weren't answered.
        """
        attempt = 1
        while True:
            try:
                return work()
            except S3_ERRORS as error:
                if attempt == self.policy.attempts or not is_garbled(error):
                    raise
                attempt += 1

    @contextmanager
    def _asking(self, key: str, *, is_key: bool = True) -> Iterator[tuple[Minio, str]]:
        """Yield the client and the object's full name; tell its errors in our own."""
        name = self.prefix + (check_key(key) if is_key else key)
        try:
            yield client_for(self.settings, self.policy), name
        except S3_ERRORS as error:
            uri = f"s3://{self.bucket}/{name}"
            raise storage_error(error, uri, self.settings, self.policy) from error

    def _failed(self, name: str, reason: str) -> StorageError:
        return store_failed(f"s3://{self.bucket}/{name}", reason, self.settings)


class _OtherVersionError(Exception):
    """The object isn't the one any more of which we have a part."""


def _is_cut(content_range: str, position: int) -> bool:
    """Whether a body ended at ``position``, before the end that its header speaks of."""
    match = _CONTENT_RANGE.match(content_range)
    return match is not None and position <= int(match[1])

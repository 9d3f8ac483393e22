"""A store in an S3 bucket: SeaweedFS, Amazon's, or any other that speaks the protocol."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from minio.helpers import DictType, check_bucket_name

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage.atomic import replacing
from clipmill.storage.s3_client import RetryPolicy, S3Settings, client_for
from clipmill.storage.store import Store, check_key

__all__ = ["RetryPolicy", "S3Settings", "S3Store"]

# A file past this goes up in parts, three at once; no part is visible before the last is in.
_PART_BYTES: Final = 16 << 20
# S3 allows this many parts to an object.
_MAX_PARTS: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20


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
        return b"".join(self._chunks(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return part of the bytes of an object."""
        assert min(start, length) >= 0, (start, length)
        if length == 0:
            # HTTP can't ask for a range of no bytes; that the object exists is still checked.
            self.size(key)
            return b""
        return b"".join(self._chunks(key, start, length))

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an object from bytes."""
        self._upload(key, io.BytesIO(data), len(data))

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.writelines(self._chunks(key))

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
                entries = client.list_objects(self.bucket, prefix=start, recursive=True)
                names = [entry.object_name or "" for entry in entries if not entry.is_dir]
        except NotFoundError:
            return
        # Not every server lists by code point: SeaweedFS goes folder by folder.
        yield from sorted(name.removeprefix(self.prefix) for name in names)

    def _upload(self, key: str, file: BinaryIO, num_bytes: int) -> None:
        part_bytes = max(_PART_BYTES, -(-num_bytes // _MAX_PARTS))
        with self._asking(key) as (client, name):
            try:
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

    def _chunks(self, key: str, start: int = 0, length: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes (all from ``start`` if ``length`` is 0).

        The client repeats a failed request; here a body that breaks off is taken up where it
        broke, as long as each attempt brings something or attempts remain.
        """
        position, end, etag, fruitless = start, start + length, "", 0
        while not length or position < end:
            before = position
            with self._asking(key) as (client, name):
                # Without If-Match, the rest of another version could follow the part we have.
                headers: DictType = {"If-Match": etag} if etag else {}
                rest = end - position if length else 0
                try:
                    response = client.get_object(self.bucket, name, position, rest, headers)
                except S3Error as error:
                    if error.response.status == 416:  # the range starts past the end
                        return
                    raise
                try:
                    if (position or rest) and response.status != 206:
                        what = f"HTTP {response.status} where part of an object was asked for"
                        raise self._failed(f"s3://{self.bucket}/{name}", what)
                    etag = response.headers.get("ETag", "")
                    for chunk in response.stream(_CHUNK_BYTES):
                        position += len(chunk)
                        yield chunk
                except urllib3.exceptions.HTTPError:
                    fruitless = fruitless + 1 if position == before else 0
                    if fruitless >= self.policy.attempts:
                        raise
                else:
                    return
                finally:
                    response.close()
                    response.release_conn()

    @contextmanager
    def _asking(self, key: str, *, is_key: bool = True) -> Iterator[tuple[Minio, str]]:
        """Yield the client and the object's full name; tell its errors in our own."""
        name = self.prefix + (check_key(key) if is_key else key)
        uri = f"s3://{self.bucket}/{name}"
        try:
            yield client_for(self.settings, self.policy), name
        except S3Error as error:
            status = error.response.status
            if status == 404:
                raise NotFoundError(
                    f"there is no object {uri} at {self.settings.endpoint}",
                    expected="an object that was written before",
                    action="check the URI, and that the step which writes it has run",
                ) from error
            if status in (401, 403):
                raise StorageError(
                    f"{self.settings.endpoint} refuses {uri}: {error.code}: {error.message}",
                    expected=f"access key {self.settings.access_key!r} with the right secret, "
                    "and the right to use this bucket",
                    action="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN "
                    "and AWS_ENDPOINT_URL",
                ) from error
            raise self._failed(uri, f"{error.code}: {error.message}") from error
        except urllib3.exceptions.MaxRetryError as error:
            raise StorageError(
                f"can't reach the S3 store at {self.settings.endpoint}: {error.reason}",
                expected="a server that answers within "
                f"{self.policy.attempts} attempts of {self.policy.connect_timeout_seconds:g} s",
                action="start the store, or correct AWS_ENDPOINT_URL",
            ) from error
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise self._failed(uri, str(error)) from error

    def _failed(self, uri: str, reason: str) -> StorageError:
        return StorageError(
            f"{self.settings.endpoint} failed on {uri}: {reason}",
            expected="an S3 store in working order",
            action="look at the store's own log, then run again: what is done already is kept",
        )

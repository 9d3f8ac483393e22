"""A store in an S3 bucket: SeaweedFS, Amazon's, or any other server of the protocol.

Credentials are looked for in the order of Amazon's own clients: keys in the environment, a web
identity (IRSA, or any other issuer), a credentials file, a container's role (ECS, EKS Pod
Identity), an instance's role. The environment decides which of them is used. There is no fallback
to the next where one fails, as its rights would differ: the credentials come from minio's
providers, but not from its ChainedProvider, which goes on to the next after a ValueError, also when
it renews.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import AWSConfigProvider, IamAwsProvider, Provider
from minio.error import MinioException, S3Error
from minio.helpers import DictType, check_bucket_name

from clipmill.errors import NotFoundError, StorageError, StoreUnavailableError
from clipmill.storage.local import atomic_write
from clipmill.storage.store import Store, StoreEntry, check_key

# Answers after which the same request may well succeed: too many requests, and server faults.
_TRANSIENT_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Number, spacing and timeouts of the attempts at one request.

    The first repetition is immediate; later ones wait an exponentially growing time plus a
    random part, so that many tasks which failed together don't come back together.
    """

    attempts: int = 5
    """Times a request is sent in all."""
    base_seconds: float = 0.2
    """Scale of the wait: repetition n (from 2 on) waits base * 2^(n-1), plus up to base."""
    max_seconds: float = 2.0
    """The longest wait between two attempts."""
    connect_timeout_seconds: float = 2.0
    """Longest time to wait for a connection, each attempt."""
    read_timeout_seconds: float = 30.0
    """Longest silence of a connected server, each attempt."""


Role = Literal["web identity", "container", "profile", "instance"]

_VARIABLES: Final[Mapping[Role, str]] = {
    "web identity": "AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN and AWS_ENDPOINT_URL_STS",
    "container": "AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI, and its token",
    "profile": "AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE",
}
# A machine that isn't Amazon's should learn so soon: nobody answers there.
_INSTANCE_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=5.0)


def resolve_role(environment: Mapping[str, str]) -> Role | None:
    """Return the role that the environment's variables and files name; None for none."""
    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "web identity"
    shared = environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    if environment.get("AWS_PROFILE") or Path(shared).expanduser().is_file():
        return "profile"
    uris = (f"AWS_CONTAINER_CREDENTIALS_{kind}_URI" for kind in ("RELATIVE", "FULL"))
    if any(environment.get(name) for name in uris):
        return "container"
    is_amazon = not environment.get("AWS_ENDPOINT_URL")
    if is_amazon and environment.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        return "instance"
    return None


class RoleCredentialsProvider(Provider):
    """Temporary credentials from a role, for minio's client; fetched again before they expire.

    Reads the process's environment. Raises StorageError where the role gives no credentials.
    """

    def __init__(self, role: Role, http: urllib3.PoolManager) -> None:
        self._role = role
        self._provider = _provider(role, http)

    def retrieve(self) -> Credentials:
        """Return credentials that are valid now."""
        try:
            return self._provider.retrieve()
        # What the library raises for answers that it can't read, too; its words may hold the token.
        except (ValueError, KeyError, TypeError, OSError, urllib3.exceptions.HTTPError) as error:
            what = "no S3 credentials found"
            if self._role == "instance":  # which is tried where nothing was set
                raise StorageError(
                    f"{what}: no keys are set, and this machine has no role",
                    expected="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role",
                    action="export the keys (and AWS_ENDPOINT_URL for a store that isn't Amazon's)",
                ) from None
            is_network = isinstance(error, urllib3.exceptions.HTTPError)
            raise (StoreUnavailableError if is_network else StorageError)(
                f"{what}: the role ({self._role}) gives none ({type(error).__name__})",
                expected="temporary credentials for the S3 store",
                action=f"check {_VARIABLES[self._role]}, and the role's trust policy",
            ) from None


def _provider(role: Role, http: urllib3.PoolManager) -> Provider:
    if role == "profile":
        return AWSConfigProvider()
    if role == "web identity":
        return IamAwsProvider(
            custom_endpoint=os.environ.get("AWS_ENDPOINT_URL_STS"), http_client=http
        )
    if role == "container":
        return IamAwsProvider(http_client=http)
    return IamAwsProvider(
        custom_endpoint=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        http_client=urllib3.PoolManager(timeout=_INSTANCE_TIMEOUT, retries=urllib3.Retry(total=1)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Settings:
    """Address and credentials of an S3 store. Secrets don't show in ``repr``."""

    endpoint: str
    """``http://host:port`` or ``https://host``."""
    access_key: str = ""
    """The access key's public half; empty where a role gives it."""
    secret_key: str = field(default="", repr=False)
    """The access key's secret half."""
    session_token: str | None = field(default=None, repr=False)
    """Third part of temporary credentials."""
    role: Role | None = None
    """Source of the credentials where the keys are empty."""
    region: str = "us-east-1"
    """Region that requests are signed for."""

    def __post_init__(self) -> None:
        url = urlsplit(self.endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.path not in ("", "/"):
            raise StorageError(
                f"AWS_ENDPOINT_URL is {self.endpoint!r}",
                expected="http://host:port or https://host, without a path",
                action="set AWS_ENDPOINT_URL to the address of the S3 store",
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the AWS_* variables; raises StorageError where one is missing or malformed.

        Without AWS_ENDPOINT_URL the store is Amazon's in AWS_REGION. Without keys a role is looked
        for (see :func:`resolve_role`); it isn't asked before the first request.
        """
        required = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        missing = [name for name in required if not environment.get(name)]
        role = resolve_role(environment) if len(missing) == len(required) else None
        if missing and not role:
            raise StorageError(
                f"an s3:// URI needs credentials, but {' and '.join(missing)} isn't set",
                expected=f"{' and '.join(required)}, and AWS_ENDPOINT_URL if it isn't Amazon's S3",
                action="set these environment variables, give this process a role, "
                "or use a local folder",
            )
        region = (
            environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        )
        return cls(
            endpoint=environment.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com",
            access_key=environment.get("AWS_ACCESS_KEY_ID", ""),
            secret_key=environment.get("AWS_SECRET_ACCESS_KEY", ""),
            session_token=environment.get("AWS_SESSION_TOKEN") or None,
            role=role,
            region=region,
        )


def client_for(settings: S3Settings, policy: RetryPolicy) -> Minio:
    """Return this process's client for these settings; threads share it and its connections."""
    # A forked child must not speak on its parent's connections, so the process is in the key.
    return _client(settings, policy, os.getpid())


@lru_cache(maxsize=8)
def _client(settings: S3Settings, policy: RetryPolicy, process_id: int) -> Minio:  # noqa: ARG001
    retries = urllib3.Retry(
        total=policy.attempts - 1,
        # minio answers redirects itself: they mean another region, and must be signed anew.
        redirect=0,
        raise_on_redirect=False,
        # None is any method: each request of S3 may be repeated, POST included.
        allowed_methods=None,
        status_forcelist=_TRANSIENT_STATUSES,
        # The last bad answer is wanted rather than an error: its body says what's wrong.
        raise_on_status=False,
        respect_retry_after_header=False,
        backoff_factor=policy.base_seconds,
        backoff_jitter=policy.base_seconds,
        backoff_max=policy.max_seconds,
    )
    timeout = urllib3.Timeout(
        connect=policy.connect_timeout_seconds, read=policy.read_timeout_seconds
    )
    url = urlsplit(settings.endpoint)
    http = urllib3.PoolManager(timeout=timeout, retries=retries, maxsize=16)
    try:
        return Minio(
            url.netloc,
            access_key=settings.access_key or None,
            secret_key=settings.secret_key or None,
            session_token=settings.session_token,
            credentials=RoleCredentialsProvider(settings.role, http) if settings.role else None,
            region=settings.region,
            secure=url.scheme == "https",
            http_client=http,
        )
    except ValueError as error:
        raise StorageError(
            f"can't ask {settings.endpoint} in region {settings.region!r}: {error}",
            expected="the address of an S3 store, and a region such as us-east-1",
            action="correct AWS_ENDPOINT_URL and AWS_REGION",
        ) from error


_LOG = logging.getLogger(__name__)

# Raised by minio's parser for a response that is cut.
_CORRUPT_RESPONSE_ERRORS: Final = (ParseError, UnicodeDecodeError)
# Codes for an upload of which the server and the client know different parts: a response was lost
# or changed on the way. The upload may succeed when it's repeated.
_LOST_UPLOADS: Final = ("InvalidPart", "NoSuchUpload", "BadDigest", "IncompleteBody")

_S3_ERRORS: Final = (MinioException, urllib3.exceptions.HTTPError, *_CORRUPT_RESPONSE_ERRORS)


def _is_corrupt_response(error: Exception) -> bool:
    """Return whether a response was damaged on the way, so that the request may be repeated.

    The client itself repeats requests that failed or weren't answered; those that it gave up on
    aren't among these.
    """
    if isinstance(error, S3Error):
        return error.code in _LOST_UPLOADS
    kinds = (*_CORRUPT_RESPONSE_ERRORS, urllib3.exceptions.HTTPError)
    return isinstance(error, kinds) and not isinstance(error, urllib3.exceptions.MaxRetryError)


def _storage_error(
    error: Exception, uri: str, settings: S3Settings, policy: RetryPolicy
) -> StorageError:
    """Return clipmill's error for one of _S3_ERRORS that was raised for ``uri``."""
    if isinstance(error, S3Error):
        status = error.response.status
        if status == 404:
            return NotFoundError(
                f"there is no object {uri} at {settings.endpoint}",
                expected="an object that was written before",
                action="check the URI, and that the step which writes it has run",
            )
        if error.code == "RequestTimeTooSkewed":
            return StorageError(
                f"{settings.endpoint} refuses {uri}: {error.code}: {error.message}",
                expected="a clock within 15 minutes of the server's",
                action="set this machine's clock, for example by NTP",
            )
        if status in (401, 403):
            return StorageError(
                f"{settings.endpoint} refuses {uri}: {error.code}: {error.message}",
                expected=f"{_describe_credentials(settings)}, and the right to use this bucket",
                action="check AWS_ENDPOINT_URL, and the role's policy"
                if settings.role
                else "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN "
                "and AWS_ENDPOINT_URL",
            )
        return _server_fault_error(uri, f"{error.code}: {error.message}", settings)
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        return StoreUnavailableError(
            f"can't reach the S3 store at {settings.endpoint}: {error.reason}",
            expected="a server that answers within "
            f"{policy.attempts} attempts of {policy.connect_timeout_seconds:g} s",
            action="start the store, or correct AWS_ENDPOINT_URL",
        )
    return _server_fault_error(uri, str(error), settings)


def _describe_credentials(settings: S3Settings) -> str:
    if settings.role:
        return f"the credentials that the role ({settings.role}) gives"
    return f"access key {settings.access_key!r} with the right secret"


def _server_fault_error(uri: str, reason: str, settings: S3Settings) -> StoreUnavailableError:
    """Return the error for a store that answers incorrectly."""
    return StoreUnavailableError(
        f"{settings.endpoint} failed on {uri}: {reason}",
        expected="an S3 store in working order",
        action="look at the store's own log, then run again: what is done already is kept",
    )


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
        with atomic_write(path) as temporary, temporary.open("wb") as file:
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
        with self._translate_errors(key) as (client, name):
            size = client.stat_object(self.bucket, name).size
            assert size is not None
            return size

    def delete(self, key: str) -> None:
        """Remove an object, if it's there."""
        try:
            with self._translate_errors(key) as (client, name):
                client.remove_object(self.bucket, name)
        except NotFoundError:
            return

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of objects that start with ``prefix``, sorted."""
        yield from (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[StoreEntry]:
        """Yield the objects that start with ``prefix``, sorted."""
        try:
            with self._translate_errors(prefix, is_key=False) as (client, start):
                entries = self._retry_corrupt_responses(partial(self._listed, client, start))
        except NotFoundError:
            return
        # Not every server lists by code point: SeaweedFS goes folder by folder.
        yield from sorted(entries, key=lambda entry: entry.key)

    def require_writable(self) -> None:
        """Warn that the first write makes the bucket, if there is none: it may be mistyped.

        Whether writes are allowed only a write shows.
        """
        with suppress(*_S3_ERRORS):  # not everyone may ask
            if not client_for(self.settings, self.policy).bucket_exists(self.bucket):
                _LOG.warning(
                    "the bucket %s doesn't exist at %s and is made now: check its name if you "
                    "didn't expect that",
                    self.bucket,
                    self.settings.endpoint,
                )

    def _listed(self, client: Minio, start: str) -> Sequence[StoreEntry]:
        return [
            StoreEntry(
                key=(entry.object_name or "").removeprefix(self.prefix),
                size=entry.size or 0,
                modified=entry.last_modified.timestamp() if entry.last_modified else 0.0,
            )
            for entry in client.list_objects(self.bucket, prefix=start, recursive=True)
            if not entry.is_dir
        ]

    def _upload(self, key: str, file: BinaryIO, num_bytes: int) -> None:
        with self._translate_errors(key) as (client, name):
            self._retry_corrupt_responses(partial(self._put, client, name, file, num_bytes))

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
        """Write an object's bytes to ``file``; start again where its version changed on the way."""
        for _ in range(self.policy.attempts):
            file.seek(0)
            file.truncate()
            try:
                file.writelines(self._chunks(key, start, length))
            except _ObjectChangedError:
                continue
            return
        what = f"its version changed in each of {self.policy.attempts} attempts to read it"
        raise self._failed_error(f"{self.prefix}{key}", what)

    def _chunks(self, key: str, start: int, length: int) -> Iterator[bytes]:
        """Yield an object's bytes (all from ``start`` if ``length`` is 0).

        The client repeats a failed request; here a body that breaks off is taken up where it
        broke, as long as each attempt brings something or attempts remain.
        """
        position, end, etag, fruitless = start, start + length, "", 0
        while not length or position < end:
            before = position
            with self._translate_errors(key) as (client, name):
                response = self._retry_corrupt_responses(
                    partial(self._open_part, client, name, position, end, etag)
                )
                if response is None:
                    return
                try:
                    etag = response.headers.get("ETag", "")
                    for chunk in response.stream(_CHUNK_BYTES):
                        position += len(chunk)
                        yield chunk
                    if _is_truncated(response.headers.get("Content-Range", ""), position):
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
        """Return a response with an object's bytes from ``position`` on; None past its end.

        ``etag`` is of the version whose first part we have: without If-Match, the rest of another
        one could follow. Raises _ObjectChangedError if there is another by now.
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
                raise _ObjectChangedError from error
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
            raise self._failed_error(name, trouble)
        raise _ObjectChangedError

    def _retry_corrupt_responses(self, work: Callable[[], _T]) -> _T:
        """Return ``work()``, repeated where the response was damaged on the way.

        The client itself repeats requests that failed or weren't answered.
        """
        attempt = 1
        while True:
            try:
                return work()
            except _S3_ERRORS as error:
                if attempt == self.policy.attempts or not _is_corrupt_response(error):
                    raise
                attempt += 1

    @contextmanager
    def _translate_errors(self, key: str, *, is_key: bool = True) -> Iterator[tuple[Minio, str]]:
        """Yield the client and the object's full name; raise its errors as clipmill's."""
        name = self.prefix + (check_key(key) if is_key else key)
        try:
            yield client_for(self.settings, self.policy), name
        except _S3_ERRORS as error:
            uri = f"s3://{self.bucket}/{name}"
            raise _storage_error(error, uri, self.settings, self.policy) from error

    def _failed_error(self, name: str, reason: str) -> StoreUnavailableError:
        return _server_fault_error(f"s3://{self.bucket}/{name}", reason, self.settings)


class _ObjectChangedError(Exception):
    """The object was replaced after a part of it was read."""


def _is_truncated(content_range: str, position: int) -> bool:
    """Return whether a body ended at ``position``, before the end that its header states."""
    match = _CONTENT_RANGE.match(content_range)
    return match is not None and position <= int(match[1])

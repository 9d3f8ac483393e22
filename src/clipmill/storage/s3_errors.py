"""What can go wrong with an S3 store, in words of ours; and which of it may go well next time."""

from typing import Final
from xml.etree.ElementTree import ParseError

import urllib3
from minio.error import MinioException, S3Error

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage.s3_client import RetryPolicy, S3Settings

# How minio's parser of answers says that one is cut.
_GARBLED: Final = (ParseError, UnicodeDecodeError)
# Said of an upload whose parts, or whose end, the server knows otherwise than we do: an answer
# got lost or changed on its way, and the upload may well succeed if it's made anew.
_LOST_UPLOADS: Final = ("InvalidPart", "NoSuchUpload", "BadDigest", "IncompleteBody")

S3_ERRORS: Final = (MinioException, urllib3.exceptions.HTTPError, *_GARBLED)
"""All that the client raises where the store or the way to it is at fault."""


def is_garbled(error: Exception) -> bool:
    """Whether an answer was damaged on its way, rather than being the server's word.

    The client itself repeats requests that failed or weren't answered: what it gave up on isn't
    among these.
    """
    if isinstance(error, S3Error):
        return error.code in _LOST_UPLOADS
    kinds = (*_GARBLED, urllib3.exceptions.HTTPError)
    return isinstance(error, kinds) and not isinstance(error, urllib3.exceptions.MaxRetryError)


def storage_error(
    error: Exception, uri: str, settings: S3Settings, policy: RetryPolicy
) -> StorageError:
    """The error of ours for one of S3_ERRORS that was met at ``uri``."""
    if isinstance(error, S3Error):
        status = error.response.status
        if status == 404:
            return NotFoundError(
                f"there is no object {uri} at {settings.endpoint}",
                expected="an object that was written before",
                action="check the URI, and that the step which writes it has run",
            )
        if status in (401, 403):
            return StorageError(
                f"{settings.endpoint} refuses {uri}: {error.code}: {error.message}",
                expected=f"{_who(settings)}, and the right to use this bucket",
                action="check AWS_ENDPOINT_URL, and the role's policy"
                if settings.role
                else "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN "
                "and AWS_ENDPOINT_URL",
            )
        return store_failed(uri, f"{error.code}: {error.message}", settings)
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        return StorageError(
            f"can't reach the S3 store at {settings.endpoint}: {error.reason}",
            expected="a server that answers within "
            f"{policy.attempts} attempts of {policy.connect_timeout_seconds:g} s",
            action="start the store, or correct AWS_ENDPOINT_URL",
        )
    return store_failed(uri, str(error), settings)


def _who(settings: S3Settings) -> str:
    if settings.role:
        return f"the credentials that the role ({settings.role}) gives"
    return f"access key {settings.access_key!r} with the right secret"


def store_failed(uri: str, reason: str, settings: S3Settings) -> StorageError:
    """The error for a store that answers, and not as it should."""
    return StorageError(
        f"{settings.endpoint} failed on {uri}: {reason}",
        expected="an S3 store in working order",
        action="look at the store's own log, then run again: what is done already is kept",
    )

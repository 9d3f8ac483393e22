"""How to reach an S3 store: settings from the environment, retries, one client a process."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self
from urllib.parse import urlsplit

import urllib3
from minio import Minio

from clipmill.errors import StorageError
from clipmill.storage.s3_roles import Role, RoleProvider, find_role

# Answers after which the same request may well succeed: too many requests, and server faults.
_TRANSIENT_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how patiently one request is sent before its failure is reported.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Settings:
    """Where an S3 store answers and as whom to ask it. Secrets don't show in ``repr``."""

    endpoint: str
    """``http://host:port`` or ``https://host``."""
    access_key: str = ""
    """The access key's public half; empty where a role gives it."""
    secret_key: str = field(default="", repr=False)
    """The access key's secret half."""
    session_token: str | None = field(default=None, repr=False)
    """Third part of temporary credentials."""
    role: Role | None = None
    """Where credentials come from that aren't given here."""
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
        for (see s3_roles); it isn't asked before the first request.
        """
        required = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        missing = [name for name in required if not environment.get(name)]
        role = find_role(environment) if len(missing) == len(required) else None
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
            credentials=RoleProvider(settings.role, http) if settings.role else None,
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

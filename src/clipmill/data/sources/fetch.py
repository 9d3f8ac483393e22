"""Images by URL: retries, redirects, robots.txt, opt-outs, and limits of time and bytes."""

import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

import httpcore
import httpx

from clipmill.data.http import retry_after_seconds
from clipmill.data.sources.fetch_config import FetchConfig
from clipmill.data.sources.network import Cache, Deadline, PublicNetwork
from clipmill.data.sources.robots import MAX_ROBOTS_BYTES, RobotsRules, opt_out
from clipmill.errors import BadSampleError, BadSampleReason

T = TypeVar("T")

# Hosts of which names, rules and limits are kept.
_MAX_HOSTS = 10_000

_ROBOTS_SECONDS = 24 * 3600.0  # RFC 9309, 2.4

# For so long nothing is fetched from a host whose robots.txt can't be had.
_FAILURE_SECONDS = 300.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Too early, too slow, too many: worth a retry, as is any 5xx.
_RETRYABLE_STATUSES = frozenset({408, 425, 429})

_FIRST_BACKOFF_SECONDS = 1.0


@dataclass(slots=True)
class _Host:
    slots: threading.BoundedSemaphore
    resumes: float = 0.0
    """Time (of ``time.monotonic``) before which its server wants no request."""


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, list[str]] = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        return next(iter(self.headers.get(name, ())), "")


class _TransientError(Exception):
    """A failure that another attempt may not have."""

    def __init__(self, reason: BadSampleReason, detail: str, wait: float = 0.0) -> None:
        self.failure = BadSampleError(reason, detail)
        self.wait = wait
        super().__init__(detail)


class Fetcher:
    """Fetcher of images, for any number of threads."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._deadline = Deadline()
        self._closed = threading.Event()
        network = PublicNetwork(
            self._deadline, allow_private=config.allow_private, max_names=_MAX_HOSTS
        )
        # Neither cookies nor keys of this machine, nor a proxy that would resolve names itself.
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=config.concurrency,
            max_keepalive_connections=config.concurrency,
            keepalive_expiry=config.read_timeout,
            network_backend=network,
        )
        weakref.finalize(self, self._pool.close)
        self._hosts: Cache[str, _Host] = Cache(_MAX_HOSTS)
        self._robots: Cache[str, RobotsRules | BadSampleError] = Cache(_MAX_HOSTS)

    def close(self) -> None:
        """End all waits."""
        self._closed.set()

    def read(self, name: str) -> bytes:
        """Return the image at a URL; raises BadSampleError with the reason of the last attempt."""
        url = _parse(name)
        return self._with_retries(lambda: self._image(url))

    def _with_retries(self, attempt: Callable[[], T]) -> T:
        for number in range(self._config.attempts):
            self._deadline.time = time.monotonic() + self._config.total_timeout
            try:
                return attempt()
            except _TransientError as error:
                # Full jitter: requests that failed together aren't retried together.
                backoff = random.uniform(0, _FIRST_BACKOFF_SECONDS * 2**number)  # noqa: S311
                is_last = number + 1 == self._config.attempts
                if is_last or error.wait > self._config.max_wait:
                    raise error.failure from error
                if self._closed.wait(min(max(error.wait, backoff), self._config.max_wait)):
                    raise error.failure from error
        raise AssertionError("no attempt")

    def _image(self, url: httpx.URL) -> bytes:
        response = self._follow(url, self._config.max_bytes, checks=True)
        if response.status != 200:
            raise self._status_error(response)
        if encoding := response.header("content-encoding"):
            raise BadSampleError(
                BadSampleReason.UNREADABLE_IMAGE,
                f"the response is encoded as {encoding:.40}, though identity was requested",
            )
        return response.body

    def _status_error(self, response: _Response) -> BadSampleError | _TransientError:
        status = response.status
        if status not in _RETRYABLE_STATUSES and status < 500:
            return BadSampleError(BadSampleReason.HTTP_ERROR, f"status {status}")
        wait = retry_after_seconds(response.header("retry-after"))
        detail = f"status {status}" + (f", Retry-After {wait:.0f} s" if wait else "")
        return _TransientError(BadSampleReason.HTTP_ERROR, detail, wait)

    def _follow(self, url: httpx.URL, max_bytes: int, *, checks: bool) -> _Response:
        """Return the first response that doesn't redirect.

        ``checks``: whether robots.txt and opt-outs apply, at each redirect.
        """
        for _ in range(self._config.max_redirects + 1):
            if checks and self._config.respect_robots:
                self._check_robots(url)
            response = self._request(url, max_bytes, is_cut=not checks)
            if checks and self._config.respect_opt_out:
                tags = response.headers.get("x-robots-tag", [])
                if directive := opt_out(tags, self._config.token):
                    raise BadSampleError(BadSampleReason.OPTED_OUT, f"X-Robots-Tag has {directive}")
            location = response.header("location")
            if response.status not in _REDIRECTS or not location:
                return response
            url = _parse(location, url)
        raise BadSampleError(
            BadSampleReason.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects}"
        )

    def _check_robots(self, url: httpx.URL) -> None:
        root = url.copy_with(raw_path=b"/robots.txt", fragment=None)
        with self._deadline.paused():
            rules = self._robots.get(str(root), lambda: self._robots_rules(root))
        if isinstance(rules, BadSampleError):
            raise BadSampleError(rules.reason, rules.detail)
        target = url.raw_path.decode("ascii", "replace")
        if not rules.allows(target):
            raise BadSampleError(BadSampleReason.DISALLOWED_BY_ROBOTS, f"{root} disallows it")

    def _robots_rules(self, url: httpx.URL) -> tuple[RobotsRules | BadSampleError, float]:
        """Return a host's rules, or why it can't be fetched from; and the seconds that it holds.

        Without a robots.txt there are no rules; while it can't be had nothing may be fetched (RFC
        9309, 2.3.1).
        """
        try:
            text = self._with_retries(lambda: self._robots_text(url))
        except BadSampleError as error:
            if error.reason in (BadSampleReason.TOO_MANY_REDIRECTS, BadSampleReason.INVALID_URL):
                return RobotsRules("", self._config.token), _ROBOTS_SECONDS
            failure = BadSampleError(error.reason, f"robots.txt: {error.detail}")
            return failure, _FAILURE_SECONDS
        return RobotsRules(text, self._config.token), _ROBOTS_SECONDS

    def _robots_text(self, url: httpx.URL) -> str:
        response = self._follow(url, MAX_ROBOTS_BYTES, checks=False)
        error = self._status_error(response)
        if response.status != 200 and isinstance(error, _TransientError):
            raise error
        return response.body.decode("utf-8", "replace")

    def _request(self, url: httpx.URL, max_bytes: int, *, is_cut: bool) -> _Response:
        """Return one response, its body only with status 200; ``is_cut``: a longer one is cut."""
        config = self._config
        host = self._hosts.get(url.host, self._new_host)
        with self._deadline.paused():
            host.slots.acquire()
        try:
            with self._deadline.paused():
                self._closed.wait(max(host.resumes - time.monotonic(), 0.0))
            try:
                response = self._stream(url, max_bytes, is_cut=is_cut)
            except httpcore.TimeoutException as error:
                raise _TransientError(BadSampleReason.TIMED_OUT, _describe(error)) from error
            except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol) as error:
                raise BadSampleError(BadSampleReason.INVALID_URL, str(error)) from error
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                    raise BadSampleError(BadSampleReason.UNREACHABLE, _describe(error)) from error
                raise _TransientError(BadSampleReason.UNREACHABLE, _describe(error)) from error
            if response.status in (429, 503):
                wait = retry_after_seconds(response.header("retry-after"))
                host.resumes = time.monotonic() + min(wait, config.max_wait)
        finally:
            host.slots.release()
        return response

    def _new_host(self) -> tuple[_Host, float]:
        return _Host(threading.BoundedSemaphore(self._config.per_host)), inf

    def _stream(self, url: httpx.URL, max_bytes: int, *, is_cut: bool) -> _Response:
        config = self._config
        timeouts = {
            "connect": config.connect_timeout,
            "read": config.read_timeout,
            "write": config.read_timeout,
            "pool": self._deadline.limit(None),
        }
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = {
            "User-Agent": config.agent,
            "Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }
        with self._pool.stream(
            "GET", target, headers=list(headers.items()), extensions={"timeout": timeouts}
        ) as response:
            received: dict[str, list[str]] = {}
            for name, value in response.headers:
                received.setdefault(name.decode("latin-1").lower(), []).append(
                    value.decode("latin-1")
                )
            body = bytearray()
            length = next(iter(received.get("content-length", ())), "")
            if response.status != 200:
                return _Response(response.status, received, b"")
            if not is_cut and length.isdecimal() and int(length) > max_bytes:
                raise BadSampleError(BadSampleReason.BODY_TOO_LARGE, f"{length} bytes")
            for piece in response.iter_stream():
                body += piece
                if len(body) > max_bytes:
                    if is_cut:
                        break
                    raise BadSampleError(
                        BadSampleReason.BODY_TOO_LARGE, f"more than {max_bytes} bytes"
                    )
            return _Response(response.status, received, bytes(body[:max_bytes]))


def _parse(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """Return the absolute URL of ``text``; raises BadSampleError (``invalid_url``)."""
    try:
        url = httpx.URL(text.strip()) if base is None else base.join(text.strip())
        is_valid = url.scheme in ("http", "https") and bool(url.host)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise BadSampleError(BadSampleReason.INVALID_URL, str(error)) from error
    if not is_valid:
        raise BadSampleError(BadSampleReason.INVALID_URL, "no URL of http or https with a host")
    if url.userinfo:
        raise BadSampleError(BadSampleReason.INVALID_URL, "the URL holds a user or password")
    return url


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]

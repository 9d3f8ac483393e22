"""Connections to public addresses alone, with a cache of names and a deadline for each thread."""

import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Generic, TypeVar

import httpcore

from clipmill.errors import BadSampleError, BadSampleReason

K = TypeVar("K")
V = TypeVar("V")

_CACHE_SECONDS, _FAILURE_SECONDS = 300.0, 30.0

_MAX_ADDRESSES = 3

# Ranges whose addresses hold an IPv4 address that a gateway connects to, and its place in bits
# from the right: 6to4 (RFC 3056) and NAT64 (RFC 6052).
_EMBEDDED = (
    (ipaddress.IPv6Network("2002::/16"), 80),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),
)


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, not of this machine or network.

    Loopback, private, shared, link-local, site-local, multicast and reserved ranges aren't, nor
    IPv6 addresses that lead to such an IPv4 address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip.is_site_local or ip.teredo:
            return False
        for network, shift in _EMBEDDED:
            if ip in network:
                return is_public(str(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Cache(Generic[K, V]):
    """Values by key, each computed by one thread while others wait, and dropped when old."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()

    def get(self, key: K, compute: Callable[[], tuple[V, float]]) -> V:
        """Return the value of ``key``; ``compute`` returns it and the seconds that it is kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.expires < time.monotonic():
                entry = self._entries[key] = _Entry()
            self._entries.move_to_end(key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        with entry.lock:
            if not entry.values:
                value, seconds = compute()
                entry.expires = time.monotonic() + seconds
                entry.values.append(value)
            return entry.values[0]


class _Entry(Generic[V]):
    def __init__(self) -> None:
        self.expires = inf
        self.lock = threading.Lock()
        self.values: list[V] = []


class Deadline(threading.local):
    """Time (of ``time.monotonic``) at which this thread's request ends."""

    time: float = inf

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time that passes meanwhile uncounted."""
        left = self.time - time.monotonic()
        try:
            yield
        finally:
            self.time = time.monotonic() + left

    def limit(self, timeout: float | None) -> float:
        """Return ``timeout`` or the seconds left, whichever is less; raises ReadTimeout if none."""
        left = self.time - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the request takes longer than total_timeout")
        return left if timeout is None else min(timeout, left)


class PublicNetwork(httpcore.NetworkBackend):
    """Backend of httpcore that resolves a name once, and connects to the addresses it checked.

    Since it is used for every connection, redirects and names whose address changes between
    check and use can't lead to private networks.
    """

    def __init__(self, deadline: Deadline, *, allow_private: bool, max_names: int) -> None:
        self._backend = httpcore.SyncBackend()
        self._deadline = deadline
        self._allow_private = allow_private
        self._addresses: Cache[str, list[str] | OSError] = Cache(max_names)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of ``host`` that answers.

        Raises BadSampleError (``private_address``) where none is public, httpcore's errors.
        """
        addresses = self._addresses.get(host, lambda: _resolve(host))
        if isinstance(addresses, OSError):
            raise httpcore.ConnectError(f"{host} can't be resolved: {addresses.strerror}")
        allowed = [a for a in addresses if self._allow_private or is_public(a)]
        if not allowed:
            raise BadSampleError(
                BadSampleReason.PRIVATE_ADDRESS, f"{host} is at {', '.join(addresses)}"
            )
        *others, last = allowed[:_MAX_ADDRESSES]
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return self._connect(address, port, timeout, local_address, socket_options)
        return self._connect(last, port, timeout, local_address, socket_options)

    def _connect(
        self, address: str, port: int, timeout: float | None, *options: Any
    ) -> httpcore.NetworkStream:
        limit = self._deadline.limit(timeout)
        stream = self._backend.connect_tcp(address, port, limit, *options)
        return _TimedStream(stream, self._deadline)


def _resolve(host: str) -> tuple[list[str] | OSError, float]:
    """Return the addresses of a name, those of IPv4 first, or why there are none; and how long."""
    try:
        records = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error, _FAILURE_SECONDS
    except UnicodeError as error:
        return OSError(0, str(error)), _FAILURE_SECONDS
    ordered = sorted(records, key=lambda record: record[0] != socket.AF_INET)
    return list(dict.fromkeys(str(record[4][0]) for record in ordered)), _CACHE_SECONDS


class _TimedStream(httpcore.NetworkStream):
    """A stream whose reads and writes end at the deadline of the thread that uses it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what has arrived."""
        return self._stream.read(max_bytes, self._deadline.limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of ``buffer``."""
        self._stream.write(buffer, self._deadline.limit(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return the stream within TLS; the certificate is checked against the name."""
        limit = self._deadline.limit(timeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return a property of the connection."""
        return self._stream.get_extra_info(info)

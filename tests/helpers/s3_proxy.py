"""A proxy in front of a real S3 server that spoils some of its answers, at set rates."""

import http.client
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
# Headers that speak of the connection, or that the proxy writes itself.
_OWN_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "date", "server"})


@dataclass(frozen=True, kw_only=True)
class FaultRates:
    """Share of the requests that meet each fault; the rest pass untouched."""

    busy: float = 0.0
    """503 SlowDown, and the server isn't asked."""
    lost: float = 0.0
    """The server does it, and its answer never comes."""
    cut: float = 0.0
    """The answer's body breaks off in the middle."""
    stalled: float = 0.0
    """The answer's body stops in the middle, and the connection stays open."""
    truncated: float = 0.0
    """Half of the body comes, with a Content-Length that agrees with it."""
    etag: float = 0.0
    """The answer bears the ETag of something else."""
    refused: float = 0.0
    """The connection closes in the middle of the request's body."""


class FaultyProxy(ThreadingHTTPServer):
    """Stands before ``endpoint``; use as a context manager. Which fault comes is up to the seed."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, endpoint: str, rates: FaultRates, seed: int, *, stall_seconds: float
    ) -> None:
        self.target = urlsplit(endpoint).netloc
        self.rates = rates
        self.stall_seconds = stall_seconds
        self.faults: Counter[str] = Counter()
        self.num_requests = 0
        self.closing = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def draw(self) -> str:
        """The fault that the next request meets; empty for none."""
        with self._lock:
            self.num_requests += 1
            left = self._random.random()
            for field in fields(self.rates):
                left -= getattr(self.rates, field.name)
                if left < 0:
                    self.faults[field.name] += 1
                    return field.name
            return ""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyProxy

    def _answer(self) -> None:
        fault = self.server.draw()
        length = int(self.headers.get("Content-Length", 0))
        if fault == "refused":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self.rfile.read(length)
        if fault == "busy":
            self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=30)
        try:
            # The Host header is the client's: its signature covers that.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
            status, headers = answer.status, answer.getheaders()
        finally:
            upstream.close()
        if fault == "lost":
            self._hang_up()
            return
        if fault == "etag":
            headers = [(n, '"0badc0de"' if n.lower() == "etag" else v) for n, v in headers]
        # The answer to HEAD has the length of the body that it doesn't have.
        said = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else len(data)
        if not data:
            fault = ""  # nothing to spoil
        if fault in ("cut", "stalled", "truncated"):
            data = data[: len(data) // 2]
        self._send(status, headers, data, len(data) if fault == "truncated" else int(said))
        if fault == "stalled":
            self.server.closing.wait(self.server.stall_seconds)
        if fault in ("cut", "stalled"):
            self._hang_up()

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

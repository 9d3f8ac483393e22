"""uvicorn's HTTP/1.1 protocol with limits of headers and of writing, and without upgrades.

uvicorn bounds neither the size of headers (with httptools) nor the time in which they come, and
keeps a response in memory for as long as its client reads nothing. Its parser stops at the headers
of a request to upgrade to HTTP/2, which Java's HttpClient and ``curl --http2`` send first; a server
may ignore that (RFC 9110, section 7.8).
"""

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from clipmill.serve.config import ServingConfig

_UPGRADES = frozenset({b"upgrade", b"http2-settings"})

_LINGER_SECONDS = 1.0

# A client's malformed request is no event of the server.
_logger = logging.getLogger("uvicorn.error.requests")
_logger.setLevel(logging.ERROR)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, limits: ServingConfig, **settings: Any) -> None:
        """Take uvicorn's settings, and the limits."""
        super().__init__(**settings)
        self.logger = _logger
        self._limits = limits
        self._is_reading_headers = True
        self._has_begun = False
        self._is_refused = False
        self._num_unparsed = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers, for a limited time."""
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse headers that are too large or no HTTP."""
        if self._is_refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        request = self.scope
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _HeadersTooLargeError):
                raise
            self._refuse_headers()
            return
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "this isn't an HTTP/1.1 request")
            return
        # httptools keeps the header that it reads in memory until its end.
        self._num_unparsed = self._num_unparsed + len(data) if self.scope is request else 0
        if self._is_reading_headers and self._num_unparsed > self._limits.max_header_bytes:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Begin to count the headers' bytes and their time."""
        super().on_message_begin()
        self._has_begun = True
        self._is_reading_headers = True
        if self._header_timer is None:
            self._start_header_timer()

    def on_headers_complete(self) -> None:
        """Start to answer; a request to upgrade is parsed again without the upgrade first."""
        self._is_reading_headers = False
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > self._limits.max_header_bytes:
            raise _HeadersTooLargeError
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note the body's end."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Hold the response back, and cut the client off if it takes nothing for too long."""
        super().pause_writing()
        self._watch_buffer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on with the response."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch_buffer(self, num_bytes: int) -> None:
        def check() -> None:
            now = self.transport.get_write_buffer_size()
            if now < num_bytes:
                self._watch_buffer(now)
            else:
                self.transport.abort()

        self._write_timer = self.loop.call_later(self._limits.write_timeout_seconds, check)

    def _start_header_timer(self) -> None:
        def refuse() -> None:
            if not self._has_begun:
                self.transport.close()  # no request was begun
                return
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the request's headers didn't arrive within {self._limits.read_timeout_seconds:g} "
                "s (read_timeout_seconds)",
            )

        self._header_timer = self.loop.call_later(self._limits.read_timeout_seconds, refuse)

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its upgrade, then the rest of what came."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this server is no proxy")
            return
        version = self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s\r\n" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(o for o in options if o.lower() not in _UPGRADES)  # noqa: PLW2901
            if name not in _UPGRADES:
                head.append(b"%s: %s\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _refuse_headers(self) -> None:
        limit = self._limits.max_header_bytes
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"the request's headers have more than {limit} bytes (max_header_bytes)",
        )

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Respond with an error and close; close alone where another response isn't finished.

        What the client still sends is read for a moment: it would lose the response otherwise.
        """
        if self.cycle is None or self.cycle.response_complete:
            body = json.dumps({"error": message}).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
            self.transport.write(b"%s%s%d\r\n\r\n%s" % (STATUS_LINE[status], head, len(body), body))
            self._is_refused = True
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


class _HeadersTooLargeError(Exception):
    """The headers of a request are larger than the limit."""

"""Answers other than the one that was asked for.

RequestError
├── BadRequestError    400: the request can't be understood or is beyond a limit
├── ModelNotFoundError  404
├── TooLargeError      413: the body alone is beyond the limit
├── ClientDisconnectedError          499: nobody waits for the answer any more
└── OverloadedError          503: try again later
"""

from http import HTTPStatus
from typing import ClassVar
from clipmill.errors import ClipmillError


class RequestError(ClipmillError):
    """A request that is refused; the text is for the client, ``reason`` for the metrics."""

    status: ClassVar[int]

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(message)


class BadRequestError(RequestError):
    """A request that can't be understood, or an image beyond a limit."""

    status = HTTPStatus.BAD_REQUEST


class ModelNotFoundError(RequestError):
    """A model that isn't served here."""

    status = HTTPStatus.NOT_FOUND


class TooLargeError(RequestError):
    """A body beyond the limit; it wasn't read to its end."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class ClientDisconnectedError(RequestError):
    """The client left; nobody reads the answer, and the status is for the metrics alone."""

    status = 499


class OverloadedError(RequestError):
    """Too much to do, or about to stop."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, reason: str, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(reason, message)
        self.retry_after_seconds = retry_after_seconds

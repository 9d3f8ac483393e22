"""HTTP error responses, and the reasons under which they are counted.

RequestError
├── BadRequestError          400: the request can't be understood or exceeds a limit
├── ModelNotFoundError       404
├── PayloadTooLargeError     413: the body exceeds the limit
├── UnsupportedEncodingError 415: the body is compressed in a way that isn't read
├── ClientDisconnectedError  499: no one is waiting for the response
├── UnsupportedError         501: a part of a protocol that this server doesn't have
└── OverloadedError          503: try again later
"""

from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar

from clipmill.errors import ClipmillError


class RejectReason(StrEnum):
    """Values of the label ``reason`` of ``clipmill_serve_requests_rejected_total``."""

    BASE64 = "base64"
    """An image's text isn't base64."""
    DEADLINE = "deadline"
    """The response wasn't ready in time."""
    DISCONNECTED = "disconnected"
    """The client closed the connection."""
    ENCODING = "encoding"
    """The body is compressed in a way that isn't read, or can't be decompressed."""
    IMAGE_COUNT = "image_count"
    """No image, or more than the queue could ever hold."""
    IMAGE_SHAPE = "image_shape"
    """An image is too thin, or images of several sizes can't share a tensor."""
    IMAGE_SIZE = "image_size"
    """An image has too many bytes or pixels."""
    IMAGE_UNREADABLE = "image_unreadable"
    """An image can't be decoded."""
    PARAMETER = "parameter"
    """An unknown parameter, or a value that it can't have."""
    PROTOCOL = "protocol"
    """The body isn't a request of V1 or V2."""
    QUEUE_FULL = "queue_full"
    """As many images or requests as are allowed are in flight."""
    REQUEST_SIZE = "request_size"
    """The body has too many bytes."""
    RESPONSE_SIZE = "response_size"
    """The response would have too many bytes."""
    SLOW = "slow"
    """The body arrived too slowly."""
    STOPPING = "stopping"
    """The server is shutting down."""
    TENSOR = "tensor"
    """A tensor's values don't fit its datatype or shape."""
    TEXT = "text"
    """A text isn't UTF-8, too long, or one too many."""
    UNKNOWN_MODEL = "unknown_model"
    """No such model or version."""


class RequestError(ClipmillError):
    """A rejected request; the message is for the client, ``reason`` for the metrics."""

    status: ClassVar[int]

    def __init__(self, reason: RejectReason, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(message)


class BadRequestError(RequestError):
    """A request that can't be understood, or an image beyond a limit."""

    status = HTTPStatus.BAD_REQUEST


class ModelNotFoundError(RequestError):
    """A model or version that isn't served."""

    status = HTTPStatus.NOT_FOUND

    def __init__(self, message: str) -> None:
        super().__init__(RejectReason.UNKNOWN_MODEL, message)


class PayloadTooLargeError(RequestError):
    """A body beyond the limit; it wasn't read to its end."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, message: str) -> None:
        super().__init__(RejectReason.REQUEST_SIZE, message)


class UnsupportedEncodingError(RequestError):
    """A body with a Content-Encoding that isn't decoded."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    def __init__(self, message: str) -> None:
        super().__init__(RejectReason.ENCODING, message)


class ClientDisconnectedError(RequestError):
    """A client that left; the status is for the metrics only."""

    status = 499

    def __init__(self) -> None:
        super().__init__(RejectReason.DISCONNECTED, "the client left")


class UnsupportedError(RequestError):
    """A call of the protocol that this server refuses to all."""

    status = HTTPStatus.NOT_IMPLEMENTED

    def __init__(self, message: str) -> None:
        super().__init__(RejectReason.PROTOCOL, message)


class OverloadedError(RequestError):
    """A full queue, a passed deadline, or a server that is shutting down."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, reason: RejectReason, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(reason, message)
        self.retry_after_seconds = retry_after_seconds

"""HTTP routes of predictions and of the models' descriptions, in front of KServe's own.

``admission_middleware`` answers a prediction without FastAPI's routing and KServe's timing, which
take half a millisecond per request. All other routes are registered with the app.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple, TypeVar

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import (
    BadRequestError,
    ClientDisconnectedError,
    ModelNotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RejectReason,
    RequestError,
    UnsupportedEncodingError,
)
from clipmill.serve.protocol.bodies import ENCODINGS, RequestBody, require_known_encoding
from clipmill.serve.server.registry import ModelRegistry
from clipmill.serve.server.tracing import trace_request
from clipmill.telemetry import serving_metrics

_logger = logging.getLogger(__name__)

_V2: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_V1: Final = re.compile(r"/v1/models/([^/]+):predict")
_NUM_DRAINED_AT_ONCE: Final = 2
_DRAIN_SECONDS: Final = 0.1
_PART_BYTES: Final = 2**18  # of a response's body, sent in a turn of the event loop
T = TypeVar("T")


class _PredictRoute(NamedTuple):
    protocol: Literal["v1", "v2"]
    model: str
    version: str


class BufferLimit:
    """Counts the bytes of requests and responses in memory, of all models and protocols."""

    def __init__(self, config: ServingConfig) -> None:
        self.num_bytes = 0
        self._config = config

    def require_room(self) -> None:
        """Raise OverloadedError while the bytes fill the memory that they may take."""
        limit = self._config.max_buffered_bytes
        if self.num_bytes >= limit:
            raise OverloadedError(
                RejectReason.QUEUE_FULL,
                f"{limit} bytes of requests and responses are in memory (max_buffered_bytes); "
                "try again later",
                retry_after_seconds=self._config.retry_after_seconds,
            )

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Count bytes that are in memory meanwhile."""
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes


class Routes:
    """Reads bodies within limits, has the models answer, and counts the responses."""

    def __init__(
        self, registry: ModelRegistry, config: ServingConfig, is_stopping: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._config = config
        self._is_stopping = is_stopping
        self.buffer = BufferLimit(config)
        self._drainer = RequestDrainer()
        self._part_turn = asyncio.Lock()

    def admission_middleware(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` behind a middleware that answers predictions and passes all else on.

        It rejects a model's predictions while ``max_queue_size`` of them are in flight; bodies that
        are still arriving and responses that are leaving count by their bytes, for all models. A
        rejection here costs a fraction of the routing, which under overload leaves the event loop
        free for health probes.
        """

        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            route = _match_predict_route(scope)
            if route is None:
                await app(scope, receive, send)
                return
            try:
                self._require_room(route)
            except OverloadedError as error:
                response = self._reject(error, route.model)
                self._count(response, route.model, "")
                await self._drainer.respond_and_drain(response, scope, receive, send)
                return
            started = time.perf_counter()
            response = await self._handle(route, Request(scope, receive))
            if response.status_code == HTTPStatus.OK:
                seconds = time.perf_counter() - started
                serving_metrics().request_seconds.labels(route.model).observe(seconds)
            with self.buffer.hold(len(response.body)):
                await response(scope, receive, _send_in_parts(send, self._part_turn))

        return middleware

    def add_to(self, app: FastAPI) -> None:
        """Register the routes; those that are registered first win.

        Predictions are among them for ``/openapi.json`` and for requests of other methods.
        """
        v2 = "/v2/models/{name}"
        for base in (v2, v2 + "/versions/{version}"):
            app.add_api_route(
                base + "/infer",
                self.handle_v2,
                name="infer",
                methods=["POST"],
                response_model=None,
                openapi_extra=INFER,
            )
            app.add_api_route(base + "/lineage", self.lineage, response_model=None)
            app.add_api_route(base + "/ready", self.model_ready, response_model=None)
            app.add_api_route(base, self.metadata, response_model=None)
        app.add_api_route(
            "/v1/models/{name}:predict",
            self.handle_v1,
            name="predict",
            methods=["POST"],
            response_model=None,
            openapi_extra=PREDICT,
        )
        app.add_api_route("/v2/models", self.models, response_model=None)
        # Of KServe's routes, which ask the registry too.
        app.add_exception_handler(RequestError, _handle_error)

    async def handle_v2(self, name: str, request: Request, version: str = "") -> Response:
        """Answer by Open Inference Protocol V2: JSON, or JSON and binary tensors."""
        return await self._handle(_PredictRoute("v2", name, version), request)

    async def handle_v1(self, name: str, request: Request) -> Response:
        """Answer by V1: plain JSON."""
        return await self._handle(_PredictRoute("v1", name, ""), request)

    async def models(self) -> Response:
        """List the models that are served."""
        return JSONResponse({"models": self._registry.names})

    async def model_ready(self, name: str, version: str = "") -> Response:
        """Tell whether a model, or one version of it, answers: 200 or 503."""
        try:
            is_healthy = await self._registry.get(name, version).healthy()
        except RequestError as error:
            return _error_response(error)
        is_ready = is_healthy and not self._is_stopping()
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    async def lineage(self, name: str, version: str = "") -> Response:
        """Describe what the model is and from what it was made, back to the captions."""
        try:
            return JSONResponse(self._registry.get(name, version).lineage())
        except RequestError as error:
            return _error_response(error)

    async def metadata(self, name: str, version: str = "") -> Response:
        """Describe inputs, outputs, classes, palette and units."""
        try:
            return JSONResponse(model_metadata(self._registry, name, version))
        except RequestError as error:
            return _error_response(error)

    async def _handle(self, route: _PredictRoute, request: Request) -> Response:
        """Answer a prediction, as a span where traces are exported."""
        with trace_request(route.model, route.protocol, request.headers) as span:
            response = await self._answer(route, request)
            span.end_with(response.status_code)
            return response

    async def _answer(self, route: _PredictRoute, request: Request) -> Response:
        """Answer a prediction; every error becomes a response, and each response is counted."""
        label, label_version = "unknown", ""
        received = bytearray()
        try:
            self._registry.get(route.model, route.version)  # before a body is read in vain
            label = route.model
            require_known_encoding(request.headers)
            await self._read(request, received)
            body = RequestBody(
                protocol=route.protocol,
                data=bytes(received),
                headers=request.headers,
                query=request.query_params,
            )
            # Resolved again: another version may have come while the body did.
            model = self._registry.get(route.model, route.version)
            label_version = model.version
            with model.in_flight():
                answer = await _cancel_on_disconnect(request, model.predict(body))
            response = Response(answer.data, headers=answer.headers)
        except RequestError as error:
            response = self._reject(error, label)
        except Exception:
            _logger.exception("model %s failed on a request", label)
            text = "the model failed on this request; the server's log says why"
            response = JSONResponse({"error": text}, status_code=500)
        finally:
            self.buffer.num_bytes -= len(received)
        self._count(response, label, label_version)
        return response

    def _reject(self, error: RequestError, label: str) -> Response:
        serving_metrics().requests_rejected.labels(label, error.reason).inc()
        return _error_response(error)

    def _count(self, response: Response, label: str, version: str) -> None:
        if self._is_stopping():
            # So that a client's next request goes to another server.
            response.headers["Connection"] = "close"
        serving_metrics().requests.labels(label, version, str(response.status_code)).inc()

    def _require_room(self, route: _PredictRoute) -> None:
        """Raise OverloadedError for a request for which there is no room now."""
        with suppress(ModelNotFoundError):
            self._registry.get(route.model, route.version).require_room()
        self.buffer.require_room()

    async def _read(self, request: Request, received: bytearray) -> None:
        """Read the body into ``received``, bounded in size and in the time of its arrival."""
        config = self._config
        try:
            async with asyncio.timeout(config.read_timeout_seconds):
                async for part in request.stream():
                    received += part
                    self.buffer.num_bytes += len(part)
                    if len(received) > config.max_request_bytes:
                        raise PayloadTooLargeError(
                            f"the request has more than {config.max_request_bytes} bytes "
                            "(max_request_bytes)"
                        )
                    self.buffer.require_room()
        except TimeoutError:
            raise BadRequestError(
                RejectReason.SLOW,
                f"the request's body didn't arrive within {config.read_timeout_seconds:g} s "
                "(read_timeout_seconds)",
            ) from None
        except ClientDisconnect:
            raise ClientDisconnectedError from None


def _send_in_parts(send: Send, turn: asyncio.Lock) -> Send:
    """Return a ``send`` that waits between the parts of a large body until the client took them.

    uvicorn keeps in memory what the client doesn't take, a second time, and copies it at once.
    ``turn``, one for all responses, leaves a turn of the event loop one part: else fast clients'
    parts, for which ``send`` doesn't wait, would keep health probes waiting.
    """

    async def send_parts(message: Message) -> None:
        body = memoryview(message.get("body", b""))
        for start in range(0, len(body) - _PART_BYTES, _PART_BYTES):
            part = body[start : start + _PART_BYTES]
            await send({"type": message["type"], "body": part, "more_body": True})
            async with turn:
                await asyncio.sleep(0)
            body_left = body[start + _PART_BYTES :]
            message = {**message, "body": body_left}
        await send(message)

    return send_parts


class RequestDrainer:
    """Responds at once, and reads rejected requests' bodies a few at a time.

    Most clients send all of a body before they read a response, so it can't be left unread. What
    comes after a response's end uvicorn reads as it comes, of each connection as much as there is:
    at hundreds of megabytes a second one turn of its loop takes tenths of seconds, for which probes
    wait. So a response ends only when its request's body is read, or after a while: slow senders do
    no harm.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_NUM_DRAINED_AT_ONCE)

    async def respond_and_drain(
        self, response: Response, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send all of ``response``, which states its length, then read the body."""

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "more_body": True}
            await send(message)

        await response(scope, receive, send_open)
        async with self._slots:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    while (await receive()).get("more_body"):
                        pass
        await send({"type": "http.response.body", "body": b""})


def model_metadata(registry: ModelRegistry, name: str, version: str = "") -> dict[str, Any]:
    """Return V2's description of a model; ModelNotFoundError if it isn't served."""
    model = registry.get(name, version)
    return {
        "name": name,
        "versions": list(registry.versions(name)),
        "platform": "clipmill",
        "inputs": model.get_input_types(),
        "outputs": model.get_output_types(),
        "parameters": {
            "task": model.adapter.kind,
            "version": model.version,
            "digest": model.digest,
            **model.adapter.describe(),
        },
    }


def _match_predict_route(scope: Scope) -> _PredictRoute | None:
    """Return the model and protocol of a prediction; None for all other requests."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if v2 := _V2.fullmatch(path):
        return _PredictRoute("v2", v2[1], v2[2] or "")
    if v1 := _V1.fullmatch(path):
        return _PredictRoute("v1", v1[1], "")
    return None


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns; cancel it where the client leaves (ClientDisconnectedError)."""
    working = asyncio.ensure_future(work)
    # The body was read to its end, so only the end of the connection can still come.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnectedError
    finally:
        leaving.cancel()
        working.cancel()


def _handle_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error_response(error)


def _error_response(error: RequestError) -> Response:
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnsupportedEncodingError):
        headers["Accept-Encoding"] = ", ".join(ENCODINGS)
    return JSONResponse({"error": error.message}, error.status, headers)


_ERROR: Final = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}}
        }
    }
}


def _error_responses() -> dict[str, Any]:
    meanings = {
        "400": "It can't be understood, or is beyond a limit",
        "404": "No such model or version",
        "413": "The body is too large",
        "415": "The body has another Content-Encoding than gzip or deflate",
        "503": "Too much to do, stopping, or past the deadline; Retry-After says when to return",
    }
    return {code: {"description": meaning, **_ERROR} for code, meaning in meanings.items()}


_TENSOR: Final = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": ["image", "text", "labels"]},
        "datatype": {"enum": ["BYTES", "UINT8", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
_OUTPUT: Final = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
_PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "output": {"enum": ["raw", "float16", "png", "rle"]},
        "top_k": {"type": "integer"},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "template": {"type": "string"},
        "deadline_milliseconds": {"type": "integer"},
        "binary_data_output": {"type": "boolean"},
    },
}

INFER: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "parameters": _PARAMETERS,
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        **_PARAMETERS["properties"],
                    },
                }
            },
        },
    },
    "parameters": [
        {
            "name": name,
            "in": "query",
            "description": "With an image or a form as the body",
            "schema": schema,
        }
        for name, schema in _PARAMETERS["properties"].items()
    ],
    "responses": {
        "200": {
            "description": "The output tensors, or a PNG with output=png",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["model_name", "outputs"],
                        "properties": {
                            "model_name": {"type": "string"},
                            "model_version": {"type": "string"},
                            "id": {"type": "string"},
                            "parameters": {"type": "object"},
                            "outputs": {"type": "array", "items": _OUTPUT},
                        },
                    }
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **_error_responses(),
    },
}
"""V2's route."""

PREDICT: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {"type": "array", "items": {"type": "object"}},
                        "labels": {"type": "array", "items": {"type": "string"}},
                        "parameters": _PARAMETERS,
                    },
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "An object for each instance",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["predictions"],
                        "properties": {
                            "predictions": {"type": "array", "items": {"type": "object"}}
                        },
                    }
                }
            },
        },
        **_error_responses(),
    },
}
"""V1's route."""

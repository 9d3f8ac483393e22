"""The routes that answer requests for predictions, in front of KServe's own."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from clipmill.serve.server.registry import ModelRegistry
from clipmill.serve.config import ServingConfig
from clipmill.serve.kserve_compat import InferRequest, InferResponse
from clipmill.serve.server.model import KServeModel
from clipmill.serve.protocol.openapi import INFER, PREDICT
from clipmill.serve.protocol.bodies import is_image_body, png_response_body, request_from_image
from clipmill.serve.errors import (
    BadRequestError,
    OverloadedError,
    ClientDisconnectedError,
    RequestError,
    TooLargeError,
)
from clipmill.serve.protocol.bodies import HEADER_LENGTH, Body, read_v1, read_v2, write_v1, write_v2
from clipmill.telemetry import serving_metrics
from contextlib import suppress
from typing import Final
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

_logger = logging.getLogger(__name__)

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_Answer = Callable[[KServeModel, bytes, Request], Coroutine[Any, Any, Body]]
_V2: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_V1: Final = re.compile(r"/v1/models/([^/]+):predict")
T = TypeVar("T")


class Routes:
    """Reads bodies within bounds, has them answered, and counts what came of it."""

    def __init__(
        self, catalogue: ModelRegistry, config: ServingConfig, is_stopping: Callable[[], bool]
    ) -> None:
        self._catalogue = catalogue
        self._config = config
        self._is_stopping = is_stopping
        self._num_open = 0
        self._discarding = RequestDrainer()

    def door(self, app: ASGIApp) -> ASGIApp:
        """``app`` behind a door that answers requests for predictions, and passes all else on.

        It is shut while as many are open as may be. What is refused here costs a fraction of what
        its routing would: under a load that can't be carried, that is what leaves the loop free
        for probes. It also bounds the bodies that are in memory, as images are bounded later. What
        is answered here does without KServe's routing and timing, half a millisecond a request.
        """

        async def behind(scope: Scope, receive: Receive, send: Send) -> None:
            asked = self._asked(scope)
            if asked is None:
                await app(scope, receive, send)
                return
            name, answer = asked
            limit = self._config.max_queue_images
            if self._num_open >= limit and name in self._catalogue.names:
                refusal = OverloadedError(
                    "queue_full",
                    f"{limit} requests are open; try again later",
                    retry_after_seconds=self._config.retry_after_seconds,
                )
                response = self._refused(refusal, name)
                self._count(response, name, "")
                await self._discarding.answer(response, scope, receive, send)
                return
            self._num_open += 1
            started = time.perf_counter()
            try:
                response = await answer(Request(scope, receive))
                await response(scope, receive, send)
            finally:
                self._num_open -= 1
            if response.status_code == HTTPStatus.OK:
                seconds = time.perf_counter() - started
                serving_metrics().request_seconds.labels(name).observe(seconds)

        return behind

    def _asked(self, scope: Scope) -> tuple[str, _Handler] | None:
        """Of which model a prediction is asked, and who answers; None for all else."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        if v2 := _V2.fullmatch(scope["path"]):
            return v2[1], lambda request: self.infer(v2[1], request, v2[2] or "")
        if v1 := _V1.fullmatch(scope["path"]):
            return v1[1], lambda request: self.predict(v1[1], request)
        return None

    def add_to(self, app: FastAPI) -> None:
        """Register the routes, those of the door too: for other methods, and for who reads of them.

        Those that are registered first win.
        """
        v2 = "/v2/models/{name}"
        for base in (v2, v2 + "/versions/{version}"):
            app.add_api_route(
                base + "/infer",
                self.infer,
                methods=["POST"],
                response_model=None,
                openapi_extra=INFER,
            )
            app.add_api_route(base + "/lineage", self.lineage, response_model=None)
            app.add_api_route(base, self.metadata, response_model=None)
        app.add_api_route(
            "/v1/models/{name}:predict",
            self.predict,
            methods=["POST"],
            response_model=None,
            openapi_extra=PREDICT,
        )
        app.add_api_route("/v2/models", self.models, response_model=None)

    async def infer(self, name: str, request: Request, version: str = "") -> Response:
        """Answer by Open Inference Protocol V2: JSON, or JSON and binary tensors."""
        return await self._respond(name, version, request, _answer_v2)

    async def predict(self, name: str, request: Request) -> Response:
        """Answer by V1: plain JSON."""
        return await self._respond(name, "", request, _answer_v1)

    async def models(self) -> Response:
        """List the models that are served."""
        return JSONResponse({"models": self._catalogue.names})

    async def lineage(self, name: str, version: str = "") -> Response:
        """Tell what the model is and what it was made of, back to the captions."""
        try:
            return JSONResponse(self._catalogue.model(name, version).lineage())
        except RequestError as refusal:
            return _refusal_response(refusal)

    async def metadata(self, name: str, version: str = "") -> Response:
        """Describe inputs, outputs, classes, palette and units."""
        try:
            return JSONResponse(metadata(self._catalogue, name, version))
        except RequestError as refusal:
            return _refusal_response(refusal)

    async def _respond(
        self, name: str, version: str, request: Request, answer: _Answer
    ) -> Response:
        label, label_version = "unknown", ""
        try:
            self._catalogue.model(name, version)  # before a body is read for nobody
            label = name
            body = await self._read(request)
            # Resolved again: another version may have come while the body did.
            model = self._catalogue.model(name, version)
            label_version = model.version
            with model.leased():
                found = await _while_connected(request, answer(model, body, request))
            response = Response(found.data, headers=found.headers)
        except RequestError as refusal:
            response = self._refused(refusal, label)
        except Exception:
            _logger.exception("model %s failed on a request", label)
            text = "the model failed on this request; the server's log says why"
            response = JSONResponse({"error": text}, status_code=500)
        self._count(response, label, label_version)
        return response

    def _refused(self, refusal: RequestError, label: str) -> Response:
        serving_metrics().rejected.labels(label, refusal.reason).inc()
        return _refusal_response(refusal)

    def _count(self, response: Response, label: str, version: str) -> None:
        if self._is_stopping():
            # So that a client's next request goes to another server.
            response.headers["Connection"] = "close"
        serving_metrics().requests.labels(label, version, str(response.status_code)).inc()

    async def _read(self, request: Request) -> bytes:
        """The body, bounded in size and in the time that it may take."""
        config = self._config
        received = bytearray()
        try:
            async with asyncio.timeout(config.max_receive_seconds):
                async for part in request.stream():
                    received += part
                    if len(received) > config.max_request_bytes:
                        raise TooLargeError(
                            "request_size",
                            f"the request has more than {config.max_request_bytes} bytes",
                        )
        except TimeoutError:
            raise BadRequestError("slow", "the request's body came too slowly") from None
        except ClientDisconnect:
            raise ClientDisconnectedError("disconnected", "the client left") from None
        return bytes(received)


def metadata(catalogue: ModelRegistry, name: str, version: str = "") -> dict[str, Any]:
    """V2's description of a model; ModelNotFoundError if it isn't served."""
    model = catalogue.model(name, version)
    return {
        "name": name,
        "versions": list(catalogue.versions(name)),
        "platform": "clipmill",
        "inputs": model.get_input_types(),
        "outputs": model.get_output_types(),
        "parameters": {
            "task": model.served.kind,
            "version": model.version,
            "digest": model.digest,
            **model.served.describe(),
        },
    }


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; it is cancelled where the client leaves (ClientDisconnectedError)."""
    answering = asyncio.ensure_future(work)
    # The body was read to its end, so that all which can come is the end of the connection.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise ClientDisconnectedError("disconnected", "the client left")
    finally:
        leaving.cancel()
        answering.cancel()


async def _answer_v2(model: KServeModel, body: bytes, asking: Request) -> Body:
    if is_image_body(asking.headers):
        picture = partial(request_from_image, body, asking.query_params, model.name)
        return await model.respond(picture, _write_picture)
    length = asking.headers.get(HEADER_LENGTH)
    return await model.respond(partial(read_v2, body, length, model.name), _write_v2)


async def _answer_v1(model: KServeModel, body: bytes, _: Request) -> Body:
    return await model.respond(partial(read_v1, body), lambda _, answer: write_v1(answer))


def _write_picture(request: InferRequest, response: InferResponse) -> Body:
    return png_response_body(response) or _write_v2(request, response)


def _write_v2(request: InferRequest, response: InferResponse) -> Body:
    return write_v2(response, binary=_wants_binary(request))


def _wants_binary(request: InferRequest) -> bool:
    """Said for the output, or else for the whole request."""
    for output in request.request_outputs or ():
        if output.binary_data is not None:
            return bool(output.binary_data)
    return bool(request.use_binary_outputs)


def _refusal_response(refusal: RequestError) -> Response:
    headers = {}
    if isinstance(refusal, OverloadedError):
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    return JSONResponse({"error": refusal.message}, refusal.status, headers)


_AT_ONCE: Final = 2
_SECONDS: Final = 0.1


class RequestDrainer:
    """Answers at once, and throws requests' bodies away a few at a time.

    Most clients send all of a body before they read an answer, so it can't be left where it is.
    What comes after an answer's end uvicorn reads as it comes, of each connection as much as there
    is: at hundreds of megabytes a second a turn of its loop takes tenths of seconds, for which
    probes wait. So an answer isn't ended before its request's body is gone, or has had its time:
    whoever sends slowly does no harm.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of ``response``, which states its length, before the body is read."""

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "more_body": True}
            await send(message)

        await response(scope, receive, send_open)
        async with self._places:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    while (await receive()).get("more_body"):
                        pass
        await send({"type": "http.response.body", "body": b""})

"""The routes that answer requests for predictions, in front of KServe's own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from clipmill.serve.config import ServeConfig
from clipmill.serve.framework import InferRequest
from clipmill.serve.model import TaskModel
from clipmill.serve.refusal import (
    BadRequestError,
    BusyError,
    RefusedError,
    TooLargeError,
    UnknownModelError,
)
from clipmill.serve.wire import HEADER_LENGTH, Body, read_v1, read_v2, write_v1, write_v2
from clipmill.telemetry import serving_metrics

_logger = logging.getLogger(__name__)

_Answer = Callable[[TaskModel, bytes, Mapping[str, str]], Awaitable[Body]]


class Routes:
    """Reads bodies within bounds, has them answered, and counts what came of it."""

    def __init__(self, models: Mapping[str, TaskModel], config: ServeConfig) -> None:
        self._models = models
        self._config = config
        self._num_open = 0

    def add_to(self, app: FastAPI) -> None:
        """Register the routes; those that are registered first win."""
        app.add_api_route(
            "/v2/models/{name}/infer", self.infer, methods=["POST"], response_model=None
        )
        app.add_api_route(
            "/v1/models/{name}:predict", self.predict, methods=["POST"], response_model=None
        )
        app.add_api_route("/v2/models/{name}/lineage", self.lineage, response_model=None)

    async def infer(self, name: str, request: Request) -> Response:
        """Open Inference Protocol V2."""
        return await self._respond(name, request, _answer_v2)

    async def predict(self, name: str, request: Request) -> Response:
        """V1."""
        return await self._respond(name, request, _answer_v1)

    async def lineage(self, name: str) -> Response:
        """What the model is and what it was made of."""
        try:
            return JSONResponse(self._model(name).lineage())
        except RefusedError as refusal:
            return _refusal_response(refusal)

    async def _respond(self, name: str, request: Request, answer: _Answer) -> Response:
        metrics = serving_metrics()
        label = name if name in self._models else "unknown"
        self._num_open += 1
        try:
            model = self._model(name)
            body = await answer(model, await self._read(request), request.headers)
            response = Response(body.data, headers=body.headers)
        except RefusedError as refusal:
            metrics.rejected.labels(label, refusal.reason).inc()
            response = _refusal_response(refusal)
        except Exception:
            _logger.exception("model %s failed on a request", name)
            text = "the model failed on this request; the server's log says why"
            response = JSONResponse({"error": text}, status_code=500)
        finally:
            self._num_open -= 1
        metrics.requests.labels(label, str(response.status_code)).inc()
        return response

    def _model(self, name: str) -> TaskModel:
        if name not in self._models:
            raise UnknownModelError("unknown_model", f"no model named {name!r} is served here")
        return self._models[name]

    async def _read(self, request: Request) -> bytes:
        """The body. Bodies in memory are bounded in size and number, as images are later."""
        config = self._config
        if self._num_open > config.max_queue_images:
            raise BusyError(
                "queue_full",
                f"{config.max_queue_images} requests are open; try again later",
                retry_after_seconds=config.retry_after_seconds,
            )
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
            raise BadRequestError("disconnected", "the client left") from None
        return bytes(received)


async def _answer_v2(model: TaskModel, body: bytes, headers: Mapping[str, str]) -> Body:
    # In a thread, as all that takes as long as a body is large: the loop stays free for probes.
    request = await asyncio.to_thread(read_v2, body, headers.get(HEADER_LENGTH), model.name)
    response, _ = await model(request)
    with serving_metrics().postprocess_seconds.labels(model.name).time():
        return await asyncio.to_thread(write_v2, response, binary=_wants_binary(request))


async def _answer_v1(model: TaskModel, body: bytes, _: Mapping[str, str]) -> Body:
    request: dict[str, Any] = await asyncio.to_thread(read_v1, body)
    response, _ = await model(request)
    with serving_metrics().postprocess_seconds.labels(model.name).time():
        return await asyncio.to_thread(write_v1, response)


def _wants_binary(request: InferRequest) -> bool:
    """Said for the output, or else for the whole request."""
    for output in request.request_outputs or ():
        if output.binary_data is not None:
            return bool(output.binary_data)
    return bool(request.use_binary_outputs)


def _refusal_response(refusal: RefusedError) -> Response:
    headers = {}
    if isinstance(refusal, BusyError):
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    return JSONResponse({"error": refusal.message}, refusal.status, headers)

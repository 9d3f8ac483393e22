"""gRPC: the Open Inference Protocol, ``grpc.health.v1`` and reflection.

KServe's own servicer loses parameters, versions and 16-bit floats, and logs a stack trace for each
refused request.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import (
    ClientDisconnectedError,
    ModelNotFoundError,
    RejectReason,
    RequestError,
    UnsupportedError,
)
from clipmill.serve.kserve_compat import DataPlane
from clipmill.serve.protocol.grpc_messages import POOL, SERVICE, GrpcBody, message_type
from clipmill.serve.server.app import BufferLimit, model_metadata
from clipmill.serve.server.registry import ModelRegistry
from clipmill.serve.server.tracing import trace_request
from clipmill.telemetry import serving_metrics

_logger = logging.getLogger(__name__)

_STATUSES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_NUM_OTHER_CALLS: Final = 64
"""Calls that may be open besides inference, such as probes."""
_WATCH_SECONDS: Final = 0.5
READ_ONLY: Final = (
    "models aren't loaded or unloaded by clients; list them in the server's models file"
)
"""Message of a refused load."""
_Call = Callable[[Any, Any], Awaitable[Any]]


class GrpcServer:
    """A gRPC server for KServe's ``ModelServer``, whose own binds to all interfaces."""

    def __init__(
        self,
        address: str,
        dataplane: DataPlane,
        registry: ModelRegistry,
        buffer: BufferLimit,
        config: ServingConfig,
    ) -> None:
        self._address = address
        self._servicer = InferenceServicer(dataplane, registry, buffer)
        self._health = HealthServicer(dataplane, registry)
        self._config = config
        num_models = len(list(registry))
        self._max_calls = 2 * config.max_queue_size * num_models + _NUM_OTHER_CALLS
        self._server: Any = None

    async def start(self) -> None:
        """Serve until stopped."""
        ping_milliseconds = int(1000 * self._config.write_timeout_seconds / 2)
        grace_seconds = self._config.max_request_seconds + self._config.write_timeout_seconds
        self._server = server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._config.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail
                # A client that hangs answers no pings either.
                ("grpc.keepalive_time_ms", ping_milliseconds),
                ("grpc.http2.ping_timeout_ms", ping_milliseconds),
                ("grpc.http2.max_pings_without_data", 0),
                # One that answers them and reads nothing can only be cut off with its connection.
                ("grpc.max_connection_age_ms", int(1000 * self._config.max_connection_seconds)),
                ("grpc.max_connection_age_grace_ms", int(1000 * grace_seconds)),
            ],
            maximum_concurrent_rpcs=self._max_calls,
        )
        server.add_generic_rpc_handlers((self._servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        others = [
            file.services_by_name[name]
            for file, name in (
                (health_pb2.DESCRIPTOR, "Health"),
                (reflection_pb2.DESCRIPTOR, "ServerReflection"),
            )
        ]
        for service in others:
            POOL.AddSerializedFile(service.file.serialized_pb)
        names = [service.full_name for service in (SERVICE, *others)]
        reflection.enable_server_reflection(names, server, POOL)
        server.add_insecure_port(self._address)
        await server.start()
        await server.wait_for_termination()

    async def stop(self, _signal: int | None = None) -> None:
        """Finish the requests in flight, then stop."""
        self._health.close()
        await self._server.stop(grace=self._config.shutdown_timeout_seconds)


class InferenceServicer:
    """``inference.GRPCInferenceService``: errors become statuses, and requests are counted."""

    def __init__(
        self,
        dataplane: DataPlane,
        registry: ModelRegistry,
        buffer: BufferLimit,
    ) -> None:
        self._dataplane = dataplane
        self._registry = registry
        self._buffer = buffer

    def handler(self) -> Any:
        """Return the handler of the service's calls."""
        calls: dict[str, _Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryModelLoad": self._refuse,
            "RepositoryModelUnload": self._refuse,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {
                # A stream of one response is the same on the wire, and its end can be awaited.
                method.name: grpc.unary_stream_rpc_method_handler(
                    self._with_status(calls[method.name]),
                    request_deserializer=message_type(method.input_type.name).FromString,
                )
                for method in SERVICE.methods
            },
        )

    def _with_status(self, call: _Call) -> Callable[[Any, Any], Awaitable[None]]:
        """Return the call with a serialized response, which counts as buffered until it's sent.

        An error becomes a status.
        """

        async def answer(request: Any, context: Any) -> None:
            try:
                response = await call(request, context)
            except RequestError as error:
                await context.abort(_status_code(error), error.message)
            except Exception:
                _logger.exception("a gRPC request failed")
                await context.abort(
                    grpc.StatusCode.INTERNAL,
                    "the model failed on this request; the server's log says why",
                )
            data = response if isinstance(response, bytes) else response.SerializeToString()
            with self._buffer.hold(len(data)):
                await context.write(data)

        return answer

    async def _server_live(self, _request: Any, _context: Any) -> Any:
        return message_type("ServerLiveResponse")(live=True)

    async def _server_ready(self, _request: Any, _context: Any) -> Any:
        return message_type("ServerReadyResponse")(ready=await self._dataplane.ready())

    async def _server_metadata(self, _request: Any, _context: Any) -> Any:
        return message_type("ServerMetadataResponse")(**self._dataplane.metadata())

    async def _model_ready(self, request: Any, _context: Any) -> Any:
        is_ready = await self._dataplane.model_ready(request.name, version=request.version)
        return message_type("ModelReadyResponse")(ready=is_ready)

    async def _model_metadata(self, request: Any, _context: Any) -> Any:
        metadata = model_metadata(self._registry, request.name, request.version)
        del metadata["parameters"]  # the message has no place for them
        return message_type("ModelMetadataResponse")(**metadata)

    async def _refuse(self, _request: Any, _context: Any) -> Any:
        raise UnsupportedError(READ_ONLY)

    async def _model_infer(self, request: Any, context: Any) -> bytes:
        metadata = context.invocation_metadata() or ()
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        with trace_request(request.model_name, "grpc", headers) as span:
            status = 500
            try:
                response = await self._infer(request, context)
                status = 200
            except RequestError as error:
                status = error.status
                raise
            except asyncio.CancelledError:
                status = ClientDisconnectedError.status
                raise
            finally:
                span.end_with(status)
            return response

    async def _infer(self, request: Any, context: Any) -> bytes:
        metrics, started = serving_metrics(), time.perf_counter()
        name, version, code = "unknown", "", "500"
        try:
            model = self._registry.get(request.model_name, request.model_version)
            name, version = model.name, model.version
            self._buffer.require_room()
            with model.in_flight(), self._buffer.hold(request.ByteSize()):
                response = await model.predict(GrpcBody(request))
            code = "200"
        except asyncio.CancelledError:
            # The client left, or its deadline passed.
            seconds = context.time_remaining()
            is_late = seconds is not None and seconds <= 0
            code = "503" if is_late else "499"
            reason = RejectReason.DEADLINE if is_late else RejectReason.DISCONNECTED
            metrics.requests_rejected.labels(name, reason).inc()
            raise
        except RequestError as error:
            code = str(int(error.status))
            metrics.requests_rejected.labels(name, error.reason).inc()
            raise
        else:
            metrics.request_seconds.labels(name).observe(time.perf_counter() - started)
            return response
        finally:
            metrics.requests.labels(name, version, code).inc()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """``grpc.health.v1``, computed at each request.

    The service ``""`` and the protocol's are the server; ``NAME`` and ``NAME@VERSION`` are models.
    """

    def __init__(self, dataplane: DataPlane, registry: ModelRegistry) -> None:
        self._dataplane = dataplane
        self._registry = registry
        self._is_closed = False

    def close(self) -> None:
        """End all watches, for which a stopping server would wait."""
        self._is_closed = True

    async def Check(self, request: Any, context: Any) -> Any:
        """Return the status of a service; NOT_FOUND if there is none of the name."""
        status = await self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service or model")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """Yield the status of a service, and again when it changes."""
        last = None
        while not self._is_closed:
            if (status := await self._status(request.service)) != last:
                yield health_pb2.HealthCheckResponse(status=status)
            last = status
            await asyncio.sleep(_WATCH_SECONDS)

    async def _status(self, service: str) -> int:
        if service in {"", SERVICE.full_name}:
            is_ready = await self._dataplane.ready()
        else:
            name, _, version = service.partition("@")
            try:
                is_ready = await self._dataplane.model_ready(name, version=version)
            except ModelNotFoundError:
                return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        statuses = health_pb2.HealthCheckResponse
        return int(statuses.SERVING if is_ready else statuses.NOT_SERVING)


def _status_code(error: RequestError) -> grpc.StatusCode:
    if error.reason is RejectReason.DEADLINE:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return _STATUSES[error.status]

"""KServe's gRPC service on a chosen address, with limits."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc_interceptor.exceptions import GrpcException

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import RejectReason, RequestError
from clipmill.serve.kserve_compat import (
    DataPlane,
    ExceptionToStatusInterceptor,
    InferenceServicer,
    InferRequest,
    InferResponse,
    ModelNotFound,
    ModelRepository,
    ModelRepositoryExtension,
    add_GRPCInferenceServiceServicer_to_server,
)
from clipmill.serve.server.app import model_metadata
from clipmill.serve.server.registry import ModelRegistry
from clipmill.telemetry import serving_metrics

_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


class RegistryDataPlane(DataPlane):  # type: ignore[misc]  # KServe has no types
    """KServe's data plane over the registry. Only gRPC infers through it."""

    def __init__(
        self, repository: ModelRepository, registry: ModelRegistry, is_stopping: Callable[[], bool]
    ) -> None:
        super().__init__(repository)
        self._registry = registry
        self._is_stopping = is_stopping

    async def ready(self) -> bool:
        """Return whether every model answers; False while the server stops."""
        return not self._is_stopping() and all([await model.healthy() for model in self._registry])

    async def model_ready(
        self,
        model_name: str,
        disable_predictor_health_check: bool = False,  # noqa: ARG002  # KServe passes it
    ) -> bool:
        """Return whether the model answers; ModelNotFound if it isn't served."""
        if model_name not in self._registry.names:
            raise ModelNotFound(model_name[:80])
        return not self._is_stopping() and await self._registry.get(model_name).healthy()

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return V2's description; gRPC's message drops its parameters."""
        if model_name not in self._registry.names:
            raise ModelNotFound(model_name[:80])
        return model_metadata(self._registry, model_name)

    async def infer(
        self,
        model_name: str,
        request: InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002  # KServe passes them
    ) -> tuple[InferResponse, dict[str, str]]:
        """Return the response, its tensors binary; a RequestError becomes a gRPC status."""
        metrics, started = serving_metrics(), time.perf_counter()
        name, version, code = "unknown", "", "500"
        try:
            model = self._registry.get(model_name, request.model_version)
            name, version = model.name, model.version
            with model.in_flight():
                answer: InferResponse = (await model(request))[0]
            code = "200"
        except asyncio.CancelledError:
            code = "499"
            metrics.requests_rejected.labels(name, RejectReason.DISCONNECTED).inc()
            raise
        except RequestError as error:
            code = str(int(error.status))
            metrics.requests_rejected.labels(name, error.reason).inc()
            raise GrpcException(error.message, _STATUSES[error.status]) from error
        else:
            metrics.request_seconds.labels(name).observe(time.perf_counter() - started)
            return answer, {}
        finally:
            metrics.requests.labels(name, version, code).inc()


class GrpcServer:
    """A gRPC server for KServe's ``ModelServer``, whose own binds to all interfaces."""

    def __init__(
        self,
        address: str,
        dataplane: DataPlane,
        repository: ModelRepositoryExtension,
        config: ServingConfig,
    ) -> None:
        self._address = address
        self._servicer = InferenceServicer(dataplane, repository)
        self._config = config
        self._server: Any = None

    async def start(self) -> None:
        """Serve until stopped."""
        self._server = grpc.aio.server(
            interceptors=(ExceptionToStatusInterceptor(),),
            options=[
                ("grpc.max_receive_message_length", self._config.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail
            ],
            # Twice the queue, so that probes come through when it is full.
            maximum_concurrent_rpcs=2 * self._config.max_queue_size,
        )
        add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self, _signal: int | None = None) -> None:
        """Finish the requests in flight, then stop."""
        await self._server.stop(grace=self._config.shutdown_timeout_seconds)

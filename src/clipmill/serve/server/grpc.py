"""The gRPC side of an endpoint: KServe's servicer on the address that we choose."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc_interceptor.exceptions import GrpcException

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import RequestError
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
from clipmill.serve.server.app import metadata
from clipmill.serve.server.registry import ModelRegistry
from clipmill.telemetry import serving_metrics

_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


class RegistryDataPlane(DataPlane):  # type: ignore[misc]  # KServe has no types
    """KServe's data plane over our catalogue. Only gRPC infers through it."""

    def __init__(
        self, repository: ModelRepository, catalogue: ModelRegistry, is_stopping: Callable[[], bool]
    ) -> None:
        super().__init__(repository)
        self._catalogue = catalogue
        self._is_stopping = is_stopping

    async def ready(self) -> bool:
        """Whether every model answers; never while the server stops."""
        return not self._is_stopping() and all([await model.healthy() for model in self._catalogue])

    async def model_ready(
        self,
        model_name: str,
        disable_predictor_health_check: bool = False,  # noqa: ARG002  # KServe passes it
    ) -> bool:
        """Whether the model answers; ModelNotFound if it isn't served."""
        if model_name not in self._catalogue.names:
            raise ModelNotFound(model_name[:80])
        return not self._is_stopping() and await self._catalogue.model(model_name).healthy()

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """V2's description; gRPC's message has no place for parameters."""
        if model_name not in self._catalogue.names:
            raise ModelNotFound(model_name[:80])
        return metadata(self._catalogue, model_name)

    async def infer(
        self,
        model_name: str,
        request: InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002  # KServe passes them
    ) -> tuple[InferResponse, dict[str, str]]:
        """The answer, its tensors binary; a refusal becomes a gRPC status."""
        metrics, started = serving_metrics(), time.perf_counter()
        name, version, code = "unknown", "", "500"
        try:
            model = self._catalogue.model(model_name, request.model_version)
            name, version = model.name, model.version
            with model.leased():
                answer: InferResponse = (await model(request))[0]
            code = "200"
        except asyncio.CancelledError:
            code = "499"
            metrics.rejected.labels(name, "disconnected").inc()
            raise
        except RequestError as refusal:
            code = str(int(refusal.status))
            metrics.rejected.labels(name, refusal.reason).inc()
            raise GrpcException(refusal.message, _STATUSES[refusal.status]) from refusal
        else:
            metrics.request_seconds.labels(name).observe(time.perf_counter() - started)
            return answer, {}
        finally:
            metrics.requests.labels(name, version, code).inc()


class GrpcServer:
    """A gRPC server as KServe's ``ModelServer`` starts and stops it; KServe's own binds to all."""

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
            # Twice, so that probes come through when all places are taken.
            maximum_concurrent_rpcs=2 * self._config.max_queue_size,
        )
        add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self, _signal: int | None = None) -> None:
        """Let what was taken in finish, then stop."""
        await self._server.stop(grace=self._config.shutdown_timeout_seconds)

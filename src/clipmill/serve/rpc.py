"""The gRPC side of an endpoint: KServe's servicer on the address that we choose."""

from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc_interceptor.exceptions import GrpcException

from clipmill.serve.config import ServeConfig
from clipmill.serve.framework import (
    DataPlane,
    ExceptionToStatusInterceptor,
    InferenceServicer,
    InferRequest,
    InferResponse,
    ModelRepositoryExtension,
    add_GRPCInferenceServiceServicer_to_server,
)
from clipmill.serve.model import TaskModel
from clipmill.serve.refusal import BusyError, RefusedError
from clipmill.telemetry import serving_metrics

_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


class TaskDataPlane(DataPlane):  # type: ignore[misc]  # KServe has no types
    """KServe's data plane, ready only while its models answer. Only gRPC infers through it."""

    async def ready(self) -> bool:
        """Whether every model answers; never while the server stops."""
        models = list(self.model_registry.get_models().values())
        return bool(models) and all([await model.healthy() for model in models])

    async def get_model(self, name: str) -> TaskModel:
        """The model; KServe would load one that isn't ready, on the event loop."""
        model: TaskModel = self.get_model_from_registry(name)
        if not await model.healthy():
            raise BusyError("stopping", "the server is stopping", retry_after_seconds=1)
        return model

    async def infer(
        self, model_name: str, request: InferRequest, headers: dict[str, str] | None = None
    ) -> tuple[InferResponse, dict[str, str]]:
        """The answer, its tensors binary; a refusal becomes a gRPC status."""
        metrics = serving_metrics()
        code = "500"
        try:
            answer: tuple[InferResponse, dict[str, str]] = await super().infer(
                model_name, request, headers
            )
            code = "200"
        except RefusedError as refusal:
            code = str(refusal.status.value)
            metrics.rejected.labels(model_name, refusal.reason).inc()
            raise GrpcException(refusal.message, _STATUSES[refusal.status]) from refusal
        else:
            return answer
        finally:
            if self.model_registry.get_model(model_name) is None:
                model_name, code = "unknown", "404"
            metrics.requests.labels(model_name, code).inc()


class RpcServer:
    """A gRPC server as KServe's ``ModelServer`` starts and stops it; KServe's own binds to all."""

    def __init__(
        self,
        address: str,
        dataplane: DataPlane,
        repository: ModelRepositoryExtension,
        config: ServeConfig,
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
            maximum_concurrent_rpcs=2 * self._config.max_queue_images,
        )
        add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self, _signal: int | None = None) -> None:
        """Let what was taken in finish, then stop."""
        await self._server.stop(grace=self._config.grace_seconds)

"""KServe's ``ModelServer`` on chosen addresses: REST with clipmill's routes in front, and gRPC."""

import asyncio
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clipmill.processes import lower_thread_priority, url_host
from clipmill.serve.config import ModelSpec, ServingConfig
from clipmill.serve.errors import UnsupportedError
from clipmill.serve.kserve_compat import (
    DataPlane,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ModelRepository,
    ModelRepositoryExtension,
    ModelServer,
    ServerNotReady,
    app,
)
from clipmill.serve.playground import Playground
from clipmill.serve.server.app import Routes
from clipmill.serve.server.grpc_server import READ_ONLY, GrpcServer
from clipmill.serve.server.http_protocol import HttpProtocol
from clipmill.serve.server.middleware import with_cors, with_methods, with_root_path
from clipmill.serve.server.model import KServeModel
from clipmill.serve.server.openapi import describe_routes
from clipmill.serve.server.registry import ModelRegistry, ModelReloader, require_distinct
from clipmill.serve.server.sampling import PayloadSampler
from clipmill.serve.server.tracing import configure_tracing, flush_traces

_EXPECTED_ERRORS: Final = (
    InvalidInput, ModelNotFound, ModelNotReady, NotImplementedError, ServerNotReady,
)  # fmt: skip
_MOUNT_SECONDS: Final = 60.0
_logger = logging.getLogger(__name__)


def _wait_for_mount(uri: str) -> None:
    """Wait for a model's folder where KServe says that its modelcar makes it meanwhile."""
    if os.environ.get("MODEL_INIT_MODE") != "async" or "://" in uri:
        return
    end = time.monotonic() + _MOUNT_SECONDS
    while not Path(uri).exists() and time.monotonic() < end:
        time.sleep(0.1)


class RegistryDataPlane(DataPlane):  # type: ignore[misc]  # KServe has no types
    """KServe's data plane over the registry; it doesn't infer."""

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
        *,
        version: str = "",
    ) -> bool:
        """Return whether the model answers; ModelNotFoundError if it isn't served."""
        model = self._registry.get(model_name, version)
        return not self._is_stopping() and await model.healthy()

    def metadata(self) -> dict[str, Any]:
        """Return V2's description of the server, with the extensions that it has."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}


class InferenceServer(ModelServer):  # type: ignore[misc]  # KServe has no types
    """One process, one event loop, any number of models, each with its batcher."""

    def __init__(
        self,
        models: tuple[ModelSpec, ...],
        *,
        models_file: Path | None,
        host: str,
        http_port: int,
        grpc_port: int | None,
        config: ServingConfig,
    ) -> None:
        """Load the models; errors as :class:`KServeModel`'s."""
        # What Pillow thinks of a client's image is no event of the server.
        warnings.filterwarnings("ignore", module="PIL")
        # KServe's choice of a response class doesn't concern readers of the log.
        warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")
        configure_tracing()
        self._config = config
        self._sampler = PayloadSampler.open(config.sampling)
        self._codec = ThreadPoolExecutor(
            config.num_codec_threads,
            thread_name_prefix="codec",
            initializer=lower_thread_priority,
        )
        for spec in models:
            _wait_for_mount(spec.uri)
        loaded = [self._load(spec) for spec in models]
        require_distinct(loaded)
        self._registry = ModelRegistry(loaded)
        super().__init__(
            http_port=http_port,
            registered_models=_RegistryRepository(self._registry),
            enable_grpc=False,  # KServe's listens on every interface; see GrpcServer
            workers=1,
            enable_latency_logging=False,
            grace_period=config.shutdown_timeout_seconds,
        )
        # They log every request, health probes too; metrics are better, and cheaper.
        for name in ("kserve.trace", "uvicorn.access"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._reloader = ModelReloader(models_file, self._load, self._registry, config)
        self._is_stopping = False
        self.dataplane = RegistryDataPlane(
            self.registered_models, self._registry, lambda: self._is_stopping
        )
        self.model_repository_extension = _ReadOnlyRepository(self.registered_models)
        self._host = host
        # A wrong path is a 404, not a redirection to wherever the Host header says.
        app.router.redirect_slashes = False
        app.openapi = partial(describe_routes, app, config.root_path)
        app.add_exception_handler(HTTPException, _respond_http_exception)
        logging.getLogger("kserve").addFilter(_is_unexpected)
        self._routes = Routes(self._registry, config, lambda: self._is_stopping)
        self._routes.add_to(app)
        self._grpc = (
            GrpcServer(
                f"{url_host(host)}:{grpc_port}",
                self.dataplane,
                self._registry,
                self._routes.buffer,
                config,
            )
            if grpc_port is not None
            else None
        )
        Playground().add_to(app)

    def run(self) -> None:
        """Serve until a signal, then finish the requests in flight."""
        self.start([self._registry.get(name) for name in self._registry.names])
        self._codec.shutdown()
        if self._sampler is not None:
            self._sampler.close()
        flush_traces()

    def _load(self, spec: ModelSpec) -> KServeModel:
        # In a thread that ends: OpenMP counts the helper threads of each thread that ever ran an
        # operator, and once they outnumber the CPUs, those of a single model no longer spin.
        with ThreadPoolExecutor(1, thread_name_prefix="load") as loading:
            return loading.submit(
                KServeModel,
                spec.name,
                spec.uri,
                self._config,
                self._codec,
                spec.version,
                self._sampler,
            ).result()

    async def _serve(self) -> None:
        settings = self._rest_server.config
        settings.host = self._host
        settings.http = partial(HttpProtocol, self._config)
        settings.ws = "none"
        predictions = self._routes.admission_middleware(app)
        routes = with_root_path(with_methods(predictions, app), self._config.root_path)
        settings.app = with_cors(routes, self._config)
        self._mark_unready_before_shutdown()
        if self._grpc is not None:
            self._grpc_server = self._grpc  # KServe stops it with the rest
            self.servers.append(self._grpc.start())
        for model in self._registry:
            await model.batcher.__aenter__()
        reloading = asyncio.create_task(self._reloader.run())
        try:
            await super()._serve()
        finally:
            reloading.cancel()
            with suppress(asyncio.CancelledError):
                await reloading
            await self._registry.replace_all([])

    def _mark_unready_before_shutdown(self) -> None:
        """Let the first signal make the server unready, and a later moment stop it.

        Load balancers keep sending for a moment after it is unready.
        """
        server = self._rest_server._server  # noqa: SLF001  # KServe has no other way to it
        loop = asyncio.get_running_loop()
        stop_accepting = server.handle_exit

        def stop(number: int, frame: FrameType | None) -> None:
            seconds = 0.0 if self._is_stopping else self._config.unready_before_shutdown_seconds
            self._is_stopping = True
            _logger.info("%s: not ready any more", signal.Signals(number).name)
            loop.call_soon_threadsafe(loop.call_later, seconds, stop_accepting, number, frame)

        server.handle_exit = stop


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Return whether KServe's log record is no mere error of a request."""
    return not (record.exc_info and isinstance(record.exc_info[1], _EXPECTED_ERRORS))


def _respond_http_exception(_: Request, error: Exception) -> Response:
    """Respond to an unknown route or method as to all other errors."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


class _RegistryRepository(ModelRepository):  # type: ignore[misc]  # KServe has no types
    """KServe's view of the registry: each name's default version, read-only."""

    def __init__(self, registry: ModelRegistry) -> None:
        super().__init__()
        self._registry = registry

    def get_models(self) -> dict[str, KServeModel]:
        return {name: self._registry.get(name) for name in self._registry.names}

    def get_model(self, name: str) -> KServeModel | None:
        return self.get_models().get(name)

    def update(self, model: KServeModel, name: str | None = None) -> None:
        pass

    def unload(self, name: str) -> None:
        pass


class _ReadOnlyRepository(ModelRepositoryExtension):  # type: ignore[misc]  # KServe has no types
    """No loading and unloading over the network: clients may use a model, not remove it."""

    async def load(self, model_name: str) -> None:  # noqa: ARG002  # KServe passes it
        raise UnsupportedError(READ_ONLY)

    async def unload(self, model_name: str) -> None:  # noqa: ARG002
        raise UnsupportedError(READ_ONLY)

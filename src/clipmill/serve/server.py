"""An endpoint: KServe's ``ModelServer`` with task models."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from clipmill.errors import ConfigError
from clipmill.serve.config import ServeConfig
from clipmill.serve.framework import ModelRepositoryExtension, ModelServer, app
from clipmill.serve.model import TaskModel
from clipmill.serve.ports import require_free
from clipmill.serve.routes import Routes
from clipmill.serve.rpc import RpcServer, TaskDataPlane

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def serve(
    models: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    http_port: int,
    grpc_port: int | None,
    config: ServeConfig,
) -> None:
    """Serve checkpoints, given as URI by name, until SIGTERM or SIGINT.

    Raises:
        ConfigError: there are no models, or a name doesn't fit a URL.
        ServerError: a port is taken; nothing was loaded then.
        NotFoundError: nothing lies at a model's URI.
        ArtifactError: what lies there is cut, changed, or no task model.
    """
    _check_names(models)
    for port in (http_port, grpc_port):
        if port is not None:
            require_free(host, port)
    # It tells every request's every stage, health probes' too; metrics say it better.
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    # KServe's choice of a response class is no concern of whoever reads our log.
    warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")
    loaded = [TaskModel(name, uri, config) for name, uri in models.items()]
    Routes({model.name: model for model in loaded}, config).add_to(app)
    _TaskServer(loaded, host=host, http_port=http_port, grpc_port=grpc_port, config=config).run()


def _check_names(models: Mapping[str, str]) -> None:
    if not models:
        raise ConfigError(
            "no model was given to serve",
            expected="at least one name with the URI of a task model",
            action="give one",
        )
    for name in models:
        if not _MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} can't name a model: it goes into URLs",
                expected="letters, digits, '.', '_' and '-', a letter or digit first",
                action="give the model another name",
            )


class _FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]  # KServe has no types
    """No loading and unloading over the network: whoever may ask a model may not remove it."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError(f"{model_name} can't be loaded: models are fixed at the start")

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError(f"{model_name} can't be unloaded: models are fixed at the start")


class _TaskServer(ModelServer):  # type: ignore[misc]  # KServe has no types
    """KServe's server on the address that we choose, its models' batchers running meanwhile."""

    def __init__(
        self,
        models: Sequence[TaskModel],
        *,
        host: str,
        http_port: int,
        grpc_port: int | None,
        config: ServeConfig,
    ) -> None:
        super().__init__(
            http_port=http_port,
            enable_grpc=False,  # KServe's listens on every interface; ours is below
            workers=1,
            enable_latency_logging=False,
            grace_period=config.grace_seconds,
        )
        self.dataplane = TaskDataPlane(self.registered_models)
        self.model_repository_extension = _FixedRepository(self.registered_models)
        self._models = models
        self._host = host
        self._rpc = (
            RpcServer(
                f"{host}:{grpc_port}", self.dataplane, self.model_repository_extension, config
            )
            if grpc_port is not None
            else None
        )

    def run(self) -> None:
        """Serve until a signal."""
        self.start(list(self._models))

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host
        if self._rpc is not None:
            self._grpc_server = self._rpc  # KServe stops it with the rest
            self.servers.append(self._rpc.start())
        async with AsyncExitStack() as stack:
            for model in self._models:
                await stack.enter_async_context(model.batcher)
            await super()._serve()

"""KServe's ``ModelServer`` on the address that we choose, with our routes in front of its own."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import AsyncExitStack

from clipmill.serve.config import ServeConfig
from clipmill.serve.framework import ModelRepositoryExtension, ModelServer, app
from clipmill.serve.model import TaskModel
from clipmill.serve.routes import Routes
from clipmill.serve.rpc import RpcServer, TaskDataPlane


class Endpoint(ModelServer):  # type: ignore[misc]  # KServe has no types
    """One process, one event loop, any number of models, each with its batcher."""

    def __init__(
        self,
        models: Sequence[TaskModel],
        *,
        host: str,
        http_port: int,
        grpc_port: int | None,
        config: ServeConfig,
    ) -> None:
        # KServe's choice of a response class is no concern of whoever reads our log.
        warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")
        super().__init__(
            http_port=http_port,
            enable_grpc=False,  # KServe's listens on every interface; ours is below
            workers=1,
            enable_latency_logging=False,
            grace_period=config.grace_seconds,
        )
        # It tells every request's every stage, health probes' too; metrics say it better.
        logging.getLogger("kserve.trace").setLevel(logging.WARNING)
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
        Routes({model.name: model for model in models}, config).add_to(app)

    def run(self) -> None:
        """Serve until a signal, then finish what was taken in."""
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


class _FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]  # KServe has no types
    """No loading and unloading over the network: whoever may ask a model may not remove it."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError(f"{model_name} can't be loaded: models are fixed at the start")

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError(f"{model_name} can't be unloaded: models are fixed at the start")

"""A file that lists the models: when it changes, so does what is served, without a pause."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from clipmill.errors import UserError
from clipmill.serve.catalogue import Catalogue
from clipmill.serve.config import ServeConfig
from clipmill.serve.listing import ListedModel, listed_models, read_models_file
from clipmill.serve.model import TaskModel
from clipmill.telemetry import serving_metrics

_logger = logging.getLogger(__name__)


class Reloader:
    """Brings the catalogue in line with the file, as often as the config says."""

    def __init__(
        self,
        path: Path | None,
        load: Callable[[ListedModel], TaskModel],
        catalogue: Catalogue,
        config: ServeConfig,
    ) -> None:
        self._path = path
        self._load = load
        self._catalogue = catalogue
        self._config = config
        self._seen = b"" if path is None else path.read_bytes()

    async def run(self) -> None:
        """Look at the file again and again; does nothing without one."""
        if self._path is None:
            return
        while True:
            await asyncio.sleep(self._config.reload_seconds)
            try:
                text = await asyncio.to_thread(self._path.read_bytes)
            except OSError:
                continue  # a file is gone for a moment where its directory is swapped
            if text != self._seen:
                self._seen = text
                await self._follow(self._path)

    async def _follow(self, path: Path) -> None:
        reloads = serving_metrics().reloads
        models: list[TaskModel] = []
        try:
            # The old models answer while the new ones are loaded and warmed up.
            for listed in listed_models(await asyncio.to_thread(read_models_file, path)):
                models.append(await self._running(listed))  # noqa: PERF401  # kept if one fails
        except Exception as error:  # whatever it is, what runs must run on
            reloads.labels("failed").inc()
            _logger.error(  # noqa: TRY400  # a user's error says all; others show their trace
                "the models stay as they were: %s",
                error,
                exc_info=not isinstance(error, UserError),
            )
            running = list(self._catalogue)
            await asyncio.gather(*(model.retire() for model in models if model not in running))
            return
        await self._catalogue.swap(models)
        reloads.labels("swapped").inc()
        _logger.info("serving %s", [f"{model.name}@{model.version}" for model in models])

    async def _running(self, listed: ListedModel) -> TaskModel:
        for model in self._catalogue:
            if (model.name, model.uri) == (listed.name, listed.uri) and (
                listed.version in {"", model.version}
            ):
                return model
        model = await asyncio.to_thread(self._load, listed)
        await model.batcher.__aenter__()
        return model

"""Models in memory by name and version, and their reloading when the models file changes."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from clipmill.errors import ConfigError, UserError
from clipmill.models.checkpoint import read_metadata
from clipmill.serve.config import ModelSpec, ServingConfig, parse_model_specs, parse_models_file
from clipmill.serve.errors import ModelNotFoundError
from clipmill.serve.server.model import KServeModel, default_version
from clipmill.telemetry import Outcome, remove_series, serving_metrics

_logger = logging.getLogger(__name__)


class ModelRegistry:
    """Models by name and version; the first of a name's versions is its default.

    Only the event loop's thread touches it.
    """

    def __init__(self, models: Sequence[KServeModel]) -> None:
        self._models: dict[str, dict[str, KServeModel]] = {}
        self._set_models(models)

    def __iter__(self) -> Iterator[KServeModel]:
        for versions in self._models.values():
            yield from versions.values()

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._models)

    def versions(self, name: str) -> Mapping[str, KServeModel]:
        """Return a name's models by version, the default first; ModelNotFoundError if none."""
        if name not in self._models:
            raise ModelNotFoundError(f"no model named {name[:80]!r} is served here")
        return self._models[name]

    def get(self, name: str, version: str | None = None) -> KServeModel:
        """Return the model; ModelNotFoundError if it isn't served."""
        versions = self.versions(name)
        if not version:
            return next(iter(versions.values()))
        if version not in versions:
            raise ModelNotFoundError(
                f"{name!r} has no version {version[:80]!r}; there are {list(versions)}",
            )
        return versions[version]

    async def replace_all(self, models: Sequence[KServeModel]) -> None:
        """Serve these models, which are running, and no others.

        The change is atomic: a request sees the old list or the new one. Requests in flight are
        still answered by the models that are removed.
        """
        removed = [model for model in self if model not in models]
        for model in removed:
            info = (model.name, model.version, model.adapter.kind, model.digest)
            serving_metrics().info.remove(*info)
        self._set_models(models)
        await asyncio.gather(*(model.drain_and_stop() for model in removed))
        for model in removed:
            is_name_served = model.name in self._models
            if is_name_served and model.version in self._models[model.name]:
                continue  # by another model of that version
            version = {"version": model.version} if is_name_served else {}
            remove_series({"model": model.name, **version})

    def _set_models(self, models: Sequence[KServeModel]) -> None:
        by_name: dict[str, dict[str, KServeModel]] = {}
        metrics = serving_metrics()
        for model in models:
            by_name.setdefault(model.name, {})[model.version] = model
            kind, digest = model.adapter.kind, model.digest
            metrics.info.labels(model.name, model.version, kind, digest).set(1)
            size = metrics.model_size_bytes.labels(model.name, model.version)
            size.set(model.metadata.tensors_bytes)
            if model.drift is not None:
                drift = metrics.embedding_drift.labels(model.name, model.version)
                drift.set_function(model.drift.distance)
        for name, versions in by_name.items():
            metrics.queue_depth.labels(name).set_function(partial(_queue_depth, versions.values()))
        self._models = by_name


def _queue_depth(models: Iterable[KServeModel]) -> int:
    return sum(model.batcher.depth for model in models)


class ModelReloader:
    """Applies changes of the models file to the registry, without a pause in serving.

    A change that can't be applied is tried again, after a wait that doubles each time.
    """

    def __init__(
        self,
        path: Path | None,
        load: Callable[[ModelSpec], KServeModel],
        registry: ModelRegistry,
        config: ServingConfig,
    ) -> None:
        self._path = path
        self._load = load
        self._registry = registry
        self._config = config
        # So that the first check compares: the file may have changed while models were loaded.
        self._content = b""
        self._num_failures = 0
        """Of the file as it is now, in a row."""
        self._retry_time = 0.0
        """Of the next try after a failure, event-loop seconds."""

    async def run(self) -> None:
        """Check the file at intervals, forever; return at once without one."""
        if self._path is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._config.reload_interval_seconds)
            try:
                content = await asyncio.to_thread(self._path.read_bytes)
            except OSError:
                # It is gone for a moment where its directory is swapped.
                serving_metrics().models_file_stale.set(1)
                continue
            if content != self._content:
                self._content, self._num_failures = content, 0
                await self._apply_changes(content)
            elif self._num_failures and loop.time() >= self._retry_time:
                await self._apply_changes(content)
            serving_metrics().models_file_stale.set(int(self._num_failures > 0))

    async def _apply_changes(self, content: bytes) -> None:
        reloads = serving_metrics().model_reloads
        models: list[KServeModel] = []
        try:
            # The old models answer while the new ones are loaded and warmed up.
            for spec in parse_model_specs(parse_models_file(content, str(self._path))):
                models.append(await self._get_or_load(spec))  # noqa: PERF401  # kept if one fails
            require_distinct(models)
        except Exception as error:  # the running models must keep running
            seconds = self._schedule_retry()
            reloads.labels(Outcome.FAILURE).inc()
            _logger.error(  # noqa: TRY400  # a user's error says all; others show their trace
                "the models stay as they were, the next try is in %g s: %s",
                seconds,
                error,
                exc_info=not isinstance(error, UserError),
            )
            running = list(self._registry)
            await asyncio.gather(
                *(model.drain_and_stop() for model in models if model not in running)
            )
            return
        self._num_failures = 0
        if models == list(self._registry):
            return
        await self._registry.replace_all(models)
        reloads.labels(Outcome.SUCCESS).inc()
        _logger.info("serving %s", [f"{model.name}@{model.version}" for model in models])

    def _schedule_retry(self) -> float:
        """Return the seconds until the next try."""
        config = self._config
        # Bounded: a power of two beyond the floats' range is an error.
        seconds = config.reload_interval_seconds * 2.0 ** min(self._num_failures, 30)
        seconds = min(seconds, max(config.max_reload_wait_seconds, config.reload_interval_seconds))
        self._num_failures += 1
        self._retry_time = asyncio.get_running_loop().time() + seconds
        return seconds

    async def _get_or_load(self, spec: ModelSpec) -> KServeModel:
        """Return the running model that a fresh server would load for ``spec``, or load it."""
        digest = (await asyncio.to_thread(read_metadata, spec.uri)).digest
        version = spec.version or default_version(digest)
        for model in self._registry:
            is_same = (model.name, model.version, model.uri) == (spec.name, version, spec.uri)
            if is_same and model.digest == digest:
                return model
        model = await asyncio.to_thread(self._load, spec)
        await model.batcher.__aenter__()
        return model


def require_distinct(models: Sequence[KServeModel]) -> None:
    """Raise ConfigError if two models have the same name and version.

    A version that isn't named is part of a digest, so only loaded models tell.
    """
    keys = [f"{model.name}@{model.version}" for model in models]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(
                f"two models are {key}",
                expected="each version of a name once",
                action="remove one of them, or name a version as NAME@VERSION",
            )

"""Which models to serve: names, versions and URIs, from the command line or a file.

A key is ``NAME`` or ``NAME@VERSION``. The first version of a name answers where none is asked for.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from clipmill.errors import ConfigError
import asyncio
from collections.abc import Iterator, Mapping, Sequence
from clipmill.serve.server.model import KServeModel
from clipmill.serve.errors import ModelNotFoundError
from clipmill.telemetry import serving_metrics
import logging
from collections.abc import Callable
from clipmill.errors import UserError
from clipmill.serve.config import ServingConfig

_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One checkpoint to serve."""

    name: str
    """The name that clients use."""
    version: str
    """Its version; empty for the digest's first characters."""
    uri: str
    """Where it lies."""


def parse_model_args(assignments: Sequence[str]) -> dict[str, str]:
    """URI by key of models given as ``NAME=URI``; ConfigError where one isn't, or comes twice."""
    models: dict[str, str] = {}
    for assignment in assignments:
        name, _, uri = assignment.partition("=")
        if not name or not uri or name in models:
            raise ConfigError(
                f"{assignment!r} "
                + ("names a model twice" if uri and name else "is not a model with its name"),
                expected="NAME=URI or NAME@VERSION=URI, each once",
                action="give the model a name of its own, such as depth=s3://bucket/models/depth-1",
            )
        models[name] = uri
    return models


def parse_model_specs(models: Mapping[str, str]) -> tuple[ModelSpec, ...]:
    """What is to be served, in order.

    Raises:
        ConfigError: there are no models, or a name doesn't fit a URL.
    """
    if not models:
        raise ConfigError(
            "no model was given to serve",
            expected="at least one name with the URI of a model",
            action="give one",
        )
    return tuple(_listed(key, uri) for key, uri in models.items())


def read_models_file(path: Path) -> dict[str, str]:
    """URI by key, from a JSON object; ConfigError if the file is anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read as JSON: {error}",
            expected='a file such as {"depth": "s3://bucket/models/depth-1"}',
            action="mend the file",
        ) from error
    if not isinstance(value, dict) or not all(isinstance(uri, str) for uri in value.values()):
        raise ConfigError(
            f"{path} isn't a list of models",
            expected='an object such as {"depth@1": "s3://bucket/models/depth-1"}',
            action="mend the file",
        )
    return value


def _listed(key: str, uri: str) -> ModelSpec:
    name, at, version = key.partition("@")
    for part in (name, version) if at else (name,):
        if not _MODEL_NAME.fullmatch(part):
            raise ConfigError(
                f"{key!r} can't name a model: it goes into URLs",
                expected="letters, digits, '.', '_' and '-', a letter or digit first; "
                "a version after '@'",
                action="give the model another name",
            )
    return ModelSpec(name=name, version=version, uri=uri)



class ModelRegistry:
    """Models by name and version; the first of a name's versions is its default.

    Only the event loop's thread touches it.
    """

    def __init__(self, models: Sequence[KServeModel]) -> None:
        self._models: dict[str, dict[str, KServeModel]] = {}
        self._show(models)

    def __iter__(self) -> Iterator[KServeModel]:
        for versions in self._models.values():
            yield from versions.values()

    @property
    def names(self) -> list[str]:
        """Names that are served."""
        return list(self._models)

    def versions(self, name: str) -> Mapping[str, KServeModel]:
        """A name's models by version, the default first; ModelNotFoundError if there are none."""
        if name not in self._models:
            raise ModelNotFoundError("unknown_model", f"no model named {name[:80]!r} is served here")
        return self._models[name]

    def model(self, name: str, version: str | None = None) -> KServeModel:
        """The model; ModelNotFoundError if it isn't served."""
        versions = self.versions(name)
        if not version:
            return next(iter(versions.values()))
        if version not in versions:
            raise ModelNotFoundError(
                "unknown_model",
                f"{name!r} has no version {version[:80]!r}; there are {list(versions)}",
            )
        return versions[version]

    async def swap(self, models: Sequence[KServeModel]) -> None:
        """Serve these and no others; each of them is running.

        From one moment to the next: a request sees the old list or the new one. Requests that
        hold a model which isn't among them are still answered by it.
        """
        gone = [model for model in self if model not in models]
        for model in gone:
            metrics = serving_metrics()
            metrics.info.remove(model.name, model.version, model.served.kind, model.digest)
            metrics.loaded_bytes.remove(model.name, model.version)
            metrics.embedding_distance.remove(model.name, model.version)
        self._show(models)
        await asyncio.gather(*(model.retire() for model in gone))

    def _show(self, models: Sequence[KServeModel]) -> None:
        shown: dict[str, dict[str, KServeModel]] = {}
        metrics = serving_metrics()
        for model in models:
            shown.setdefault(model.name, {})[model.version] = model
            kind, digest = model.served.kind, model.digest
            metrics.info.labels(model.name, model.version, kind, digest).set(1)
            metrics.loaded_bytes.labels(model.name, model.version).set(model.metadata.tensors_bytes)
            if model.drift is not None:
                distance = metrics.embedding_distance.labels(model.name, model.version)
                distance.set_function(model.drift.distance)
        self._models = shown


_logger = logging.getLogger(__name__)


class ModelReloader:
    """Brings the catalogue in line with the file, as often as the config says."""

    def __init__(
        self,
        path: Path | None,
        load: Callable[[ModelSpec], KServeModel],
        catalogue: ModelRegistry,
        config: ServingConfig,
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
        models: list[KServeModel] = []
        try:
            # The old models answer while the new ones are loaded and warmed up.
            for listed in parse_model_specs(await asyncio.to_thread(read_models_file, path)):
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

    async def _running(self, listed: ModelSpec) -> KServeModel:
        for model in self._catalogue:
            if (model.name, model.uri) == (listed.name, listed.uri) and (
                listed.version in {"", model.version}
            ):
                return model
        model = await asyncio.to_thread(self._load, listed)
        await model.batcher.__aenter__()
        return model

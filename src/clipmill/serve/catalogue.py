"""Which models are served, in which versions, and the one that answers where none is named."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from clipmill.serve.model import TaskModel
from clipmill.serve.refusal import UnknownModelError
from clipmill.telemetry import serving_metrics


class Catalogue:
    """Models by name and version; the first of a name's versions is its default.

    Only the event loop's thread touches it.
    """

    def __init__(self, models: Sequence[TaskModel]) -> None:
        self._models: dict[str, dict[str, TaskModel]] = {}
        self._show(models)

    def __iter__(self) -> Iterator[TaskModel]:
        for versions in self._models.values():
            yield from versions.values()

    @property
    def names(self) -> list[str]:
        """Names that are served."""
        return list(self._models)

    def versions(self, name: str) -> Mapping[str, TaskModel]:
        """A name's models by version, the default first; UnknownModelError if there are none."""
        if name not in self._models:
            raise UnknownModelError("unknown_model", f"no model named {name[:80]!r} is served here")
        return self._models[name]

    def model(self, name: str, version: str | None = None) -> TaskModel:
        """The model; UnknownModelError if it isn't served."""
        versions = self.versions(name)
        if not version:
            return next(iter(versions.values()))
        if version not in versions:
            raise UnknownModelError(
                "unknown_model",
                f"{name!r} has no version {version[:80]!r}; there are {list(versions)}",
            )
        return versions[version]

    async def swap(self, models: Sequence[TaskModel]) -> None:
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

    def _show(self, models: Sequence[TaskModel]) -> None:
        shown: dict[str, dict[str, TaskModel]] = {}
        metrics = serving_metrics()
        for model in models:
            shown.setdefault(model.name, {})[model.version] = model
            kind, digest = model.served.kind, model.digest
            metrics.info.labels(model.name, model.version, kind, digest).set(1)
            metrics.loaded_bytes.labels(model.name, model.version).set(model.card.tensors_bytes)
            if model.drift is not None:
                distance = metrics.embedding_distance.labels(model.name, model.version)
                distance.set_function(model.drift.distance)
        self._models = shown

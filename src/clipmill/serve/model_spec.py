"""Names, versions and URIs of the models to serve, from the command line or a file.

A key is ``NAME`` or ``NAME@VERSION``. The first version of a name is its default.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clipmill.errors import ConfigError

_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One checkpoint to serve."""

    name: str
    """The name that clients use."""
    version: str
    """Its version; empty for the digest's first characters."""
    uri: str
    """URI of its checkpoint."""


def parse_model_args(assignments: Sequence[str]) -> dict[str, str]:
    """Return URI by key of models given as ``NAME=URI``.

    Raises ConfigError where one isn't in this form, or comes twice.
    """
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
    """Return the models in the order of the mapping.

    Raises:
        ConfigError: there are no models, or a name doesn't fit a URL.
    """
    if not models:
        raise ConfigError(
            "no model was given to serve",
            expected="at least one name with the URI of a model",
            action="name one, such as depth=s3://bucket/models/depth-1",
        )
    return tuple(_parse_spec(key, uri) for key, uri in models.items())


def read_models_file(path: Path) -> dict[str, str]:
    """Return URI by key from a file with a JSON object; ConfigError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read as JSON: {error}",
            expected='a file such as {"depth": "s3://bucket/models/depth-1"}',
            action=f"correct {path}",
        ) from error
    if not isinstance(value, dict) or not all(isinstance(uri, str) for uri in value.values()):
        raise ConfigError(
            f"{path} isn't a list of models",
            expected='an object such as {"depth@1": "s3://bucket/models/depth-1"}',
            action=f"correct {path}",
        )
    return value


def _parse_spec(key: str, uri: str) -> ModelSpec:
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

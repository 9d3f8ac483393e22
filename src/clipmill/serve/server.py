"""``serve``: what can be wrong is found before the libraries and models are loaded."""

import re
from collections.abc import Mapping, Sequence

from clipmill.errors import ConfigError
from clipmill.serve.config import ServeConfig
from clipmill.serve.ports import require_free

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

    # Seconds of torch and KServe.
    from clipmill.serve.endpoint import Endpoint
    from clipmill.serve.model import TaskModel

    loaded = [TaskModel(name, uri, config) for name, uri in models.items()]
    Endpoint(loaded, host=host, http_port=http_port, grpc_port=grpc_port, config=config).run()


def named_models(assignments: Sequence[str]) -> dict[str, str]:
    """URI by name of models given as ``NAME=URI``; ConfigError where one isn't, or comes twice."""
    models: dict[str, str] = {}
    for assignment in assignments:
        name, _, uri = assignment.partition("=")
        if not name or not uri or name in models:
            raise ConfigError(
                f"{assignment!r} "
                + ("names a model twice" if uri and name else "is not a model with its name"),
                expected="NAME=URI, each name once",
                action="give the model a name of its own, such as depth=s3://bucket/models/depth-1",
            )
        models[name] = uri
    return models


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

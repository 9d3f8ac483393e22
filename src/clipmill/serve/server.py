"""``serve``: what can be wrong is found before the libraries and models are loaded."""

import gc
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from clipmill.deferred import deferred
from clipmill.errors import ConfigError
from clipmill.processes import tune_malloc
from clipmill.serve.config import ServeConfig
from clipmill.serve.listing import listed_models, read_models_file
from clipmill.processes import require_free

_SWITCH_SECONDS: Final = 0.0005
_UNUSED: Final = (
    "httpx._main",  # its command line, with rich
    "huggingface_hub",  # of timm; we load weights from our own store
    "kubernetes",  # of KServe's client of clusters
    "pandas",  # of KServe, for requests as data frames
    "tabulate",  # of KServe's client of clusters
    "torch._dynamo",  # of torchvision; nothing is compiled here
    "torchvision.datasets",
    "transformers",  # of open_clip, for text towers that we don't have
)
"""What our libraries import and a server doesn't use: half of the time to its start."""


def serve(
    models: Mapping[str, str],
    *,
    models_file: Path | None = None,
    host: str = "127.0.0.1",
    http_port: int,
    grpc_port: int | None,
    config: ServeConfig,
) -> None:
    """Serve checkpoints, given as URI by ``NAME`` or ``NAME@VERSION``, until SIGTERM or SIGINT.

    ``models_file`` lists them instead, as a JSON object: when it changes, what is served does.

    Raises:
        ConfigError: there are no models, or a name doesn't fit a URL.
        ServerError: a port is taken; nothing was loaded then.
        NotFoundError: nothing lies at a model's URI.
        ArtifactError: what lies there is cut, changed, or of a kind that can't be served.
    """
    if models and models_file is not None:
        raise ConfigError(
            "models were given, and a file that lists models",
            expected="one of the two",
            action="put all models into the file",
        )
    listed = listed_models(read_models_file(models_file) if models_file is not None else models)
    for port in (http_port, grpc_port):
        if port is not None:
            require_free(host, port)

    tune_malloc()
    with deferred(*_UNUSED):
        # Seconds of torch, timm and KServe; models would import the first two later.
        import open_clip  # noqa: F401

        from clipmill.serve.endpoint import Endpoint

    endpoint = Endpoint(
        listed,
        models_file=models_file,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        config=config,
    )
    # A collection that looked at all that libraries have made would stall probes.
    gc.freeze()
    # Threads that decode give way to the event loop sooner than Python's 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    endpoint.run()

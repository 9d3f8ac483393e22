"""Configuration of a server: its limits, and the models to serve with names, versions and URIs.

A model's key is ``NAME`` or ``NAME@VERSION``, from the command line or a file. The first version of
a name is its default.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError

DEFAULT_PORT: Final = 8080
"""HTTP port of ``clipmill serve``, and of the endpoints that the demo leaves up."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(Config):
    """Samples of requests' images, for relabeling; none by default."""

    rate: float = 0.0
    """Fraction of the images of answered requests that are written, 0 to 1."""
    store: str = ""
    """Folder or s3:// URI to write them to."""
    redaction: Literal["none", "metadata", "downscale"] = "metadata"
    """``none`` keeps files as they were sent; ``metadata`` keeps pixels alone, without EXIF and
    location; ``downscale`` also shrinks them to ``max_side``."""
    max_side: int = 256
    """Longer side of an image after ``downscale``, pixels."""
    max_queue_bytes: int = 64 * 2**20
    """Most bytes of images that wait to be written; those beyond it are dropped."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, low, high in (
            ("rate", 0, 1),
            ("max_side", 1, 65535),
            ("max_queue_bytes", 1, 2**40),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"sampling.{name} was {getattr(self, name)}",
                    expected=f"a number from {low} to {high}",
                    action=f"set sampling.{name} in that range",
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig(Config):
    """Batching, admission, limits and addresses of a server; all numbers are above zero."""

    max_batch_size: int = 8
    """Largest batch, images."""
    max_wait_seconds: float = 0.005
    """Longest time that an image waits for others, being decoded, to share its batch, seconds."""
    max_queue_size: int = 32
    """Most images and requests in flight of each model; a request beyond them gets a 503."""
    retry_after_seconds: int = 1
    """Retry-After of a 503, seconds."""
    max_request_bytes: int = 32 * 2**20
    """Largest body of a request, as sent and decompressed, bytes."""
    max_response_bytes: int = 64 * 2**20
    """Largest body of a response, bytes; known before it is encoded."""
    max_buffered_bytes: int = 2**30
    """Most bytes of bodies that are arriving and of responses that are leaving, of all models
    together; a request beyond them gets a 503."""
    max_header_bytes: int = 64 * 2**10
    """Largest headers of a request with its URL, bytes."""
    read_timeout_seconds: float = 30.0
    """Longest time in which a request's headers, and then its body, must arrive, seconds."""
    write_timeout_seconds: float = 30.0
    """Longest time for which a client may read nothing of its response, seconds."""
    max_connection_seconds: float = 300.0
    """Age of a gRPC connection at which it is closed once its requests are answered, seconds.
    Clients open another. It bounds how long one that reads nothing can hold memory."""
    max_image_bytes: int = 32 * 2**20
    """Largest encoded image, bytes."""
    max_pixels: int = 64_000_000
    """Largest image, pixels; read from its header before it is decoded."""
    max_network_pixels: int = 2048 * 2048
    """Largest image that a network gets, pixels; larger ones are scaled down before, and outputs
    scaled back to the image's size."""
    max_aspect_ratio: float = 4.0
    """Longer side over shorter: networks scale by the shorter, so a thin image would explode."""
    warmup_image_size: int = 64
    """Side of the square image that a model predicts before it is ready, pixels."""
    shutdown_timeout_seconds: int = 30
    """Longest time in which a stopping server finishes the requests in flight, seconds."""
    unready_before_shutdown_seconds: float = 0.3
    """Time for which a stopping server is unready and still accepts requests, seconds: until load
    balancers have noticed. A few seconds on a cluster."""
    max_request_seconds: float = 30.0
    """Longest time to a response, seconds; a request may set a shorter deadline."""
    max_texts: int = 256
    """Most texts or labels in a request."""
    max_text_length: int = 1000
    """Longest text or label, characters."""
    num_codec_threads: int = 4
    """Threads that decode images and encode responses, for all models together."""
    reload_interval_seconds: float = 1.0
    """Interval of the checks of the models file for changes, seconds."""
    max_reload_wait_seconds: float = 60.0
    """Longest wait until a change of the models file that failed is tried again, seconds; the first
    is ``reload_interval_seconds``, and each one is twice the last."""
    cors_origins: tuple[str, ...] = ()
    """Origins, such as ``https://example.org``, whose pages may query the server from a browser;
    ``*`` is any."""
    root_path: str = ""
    """Path under which a proxy publishes the server, such as ``/models``; the proxy may strip it
    or not."""
    backend: Literal["torch", "onnx"] = "torch"
    """Library that runs the networks; ``onnx`` is ONNX Runtime (extra ``onnx``)."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """Samples of requests' images, for relabeling."""

    def __post_init__(self) -> None:
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError(
                f"root_path was {self.root_path!r}",
                expected="a path that begins with a slash and doesn't end with one",
                action="set root_path to a path such as /models",
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise ConfigError(
                    f"{field.name} was {getattr(self, field.name)}",
                    expected="a number above zero",
                    action=f"set {field.name} to a number above zero",
                )


_ROOT_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
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
        content = path.read_bytes()
    except OSError as error:
        raise _models_file_error(str(path), f"can't be read: {error}") from error
    return parse_models_file(content, str(path))


def parse_models_file(content: bytes, path: str) -> dict[str, str]:
    """Return URI by key from the content of a models file; ConfigError for anything else."""
    try:
        pairs = json.loads(content, object_pairs_hook=tuple)
    except ValueError as error:
        raise _models_file_error(path, f"can't be read as JSON: {error}") from error
    # Tuples are of pairs; a list, which is no object, stays one.
    if not isinstance(pairs, tuple) or not all(isinstance(uri, str) for _, uri in pairs):
        raise _models_file_error(path, "isn't a list of models")
    models = dict(pairs)
    if len(models) < len(pairs):
        raise _models_file_error(path, "names a model twice")
    return models


def _models_file_error(path: str, fault: str) -> ConfigError:
    return ConfigError(
        f"{path} {fault}",
        expected='an object such as {"depth@1": "s3://bucket/models/depth-1"}, each key once',
        action=f"correct {path}",
    )


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

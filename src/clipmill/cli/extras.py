"""Optional dependencies: which commands need them, and what to install where one is missing."""

import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Final, ParamSpec, TypeVar

from clipmill.errors import MissingExtraError

_MODEL: Final = ("torch", "torchvision", "open_clip", "timm", "transformers")
_TRAIN: Final = (*_MODEL, "mmcv", "mmdet", "mmengine", "mmseg", "pycocotools")
_SERVE: Final = (*_MODEL, "grpc_health", "grpc_reflection", "kserve", "psutil")
_CLUSTER: Final = ("hera", "kubernetes", "torchx", "yaml")
_PIPELINES: Final = (*_CLUSTER, "kfp")
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": _MODEL,
    "train": _TRAIN,
    "serve": _SERVE,
    "cluster": _CLUSTER,
    "pipelines": _PIPELINES,
    "export": (*_MODEL, "onnx", "onnxruntime", "onnxscript"),
    "coreml": (*_MODEL, "coremltools"),
    "demo": tuple(dict.fromkeys((*_TRAIN, *_SERVE, *_PIPELINES))),
}
"""Modules that pyproject.toml's extras bring, the smallest extra first; `store` brings none."""

P = ParamSpec("P")
R = TypeVar("R")


def needs(extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of commands that checks for an extra before any work begins.

    The command raises MissingExtraError where one of the extra's modules isn't installed.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            require(extra)
            return command(*args, **kwargs)

        return checked

    return decorate


def require(extra: str) -> None:
    """Raise MissingExtraError if a module of the extra isn't installed; imports none of them."""
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise missing_extra_error(extra, missing[0])


def extra_of(module: str) -> str | None:
    """Return the smallest extra that brings a module, or None if none does."""
    package = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)


def missing_extra_error(extra: str, module: str) -> MissingExtraError:
    """Return the error for a missing module of an extra."""
    return MissingExtraError(
        f"the Python package {module} isn't installed",
        expected=f"clipmill with the extra {extra!r}",
        action=f"pip install 'clipmill[{extra}]'",
    )

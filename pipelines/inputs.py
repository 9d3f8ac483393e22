"""A pipeline's inputs, taken from the pieces that it is made of: each is declared once."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Piece = Any
"""A function that adds tasks, or a pipeline that is used as a component."""


def with_inputs_of(*pieces: Piece) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a pipeline's function the optional inputs of ``pieces`` beside its own.

    The function gets their values as ``**given``, and hands them on with :func:`inputs_for`. What a
    piece requires is wired by the function, and so is no input of the pipeline.
    """

    def extend(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        inputs = {n: p for n, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        taken = dict(inputs)
        for piece in pieces:
            for name, parameter in _optional(piece).items():
                known = inputs.setdefault(name, parameter)
                assert name in taken or known == parameter, f"two pieces differ about {name}"
        ordered = sorted(inputs.values(), key=lambda p: p.default is not p.empty)

        @functools.wraps(function)
        def extended(*values: Any) -> Any:
            return function(**dict(zip((p.name for p in ordered), values, strict=True)))

        extended.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]  # KFP reads it
        return extended

    return extend


def inputs_for(piece: Piece, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a pipeline's inputs that ``piece`` takes."""
    return {name: given[name] for name in _optional(piece) if name in given}


def _optional(piece: Piece) -> dict[str, inspect.Parameter]:
    function = getattr(piece, "pipeline_func", piece)
    found = inspect.signature(function).parameters.values()
    return {p.name: p for p in found if p.default is not p.empty}

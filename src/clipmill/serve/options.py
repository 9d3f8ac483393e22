"""What a request may ask for beside its tensors: the ``parameters`` of V2 and of V1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from clipmill.serve.refusal import BadRequestError

Coding = Literal["raw", "float16", "png", "rle"]

_PROTOCOLS_OWN: Final = frozenset({"binary_data_output", "binary_data_size", "digest"})
_MAX_TEMPLATE: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """One request's wishes."""

    output: Coding = "raw"
    """``raw`` numbers; ``float16`` for floating-point numbers at half the size; ``png``: class ids
    with their palette, or depth in millimetres as 16 bits; ``rle``: masks of objects in COCO's
    form."""
    top_k: int = 0
    """How many of the likeliest labels or classes to name, or objects to give; 0 gives all."""
    threshold: float = 0.0
    """Lowest score of an object that is given."""
    template: str = "{}"
    """Sentence that each label is put into, in place of ``{}``."""
    deadline_seconds: float | None = None
    """When the client stops waiting, seconds after the request came."""

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "Options":
        """Read ``output``, ``top_k``, ``threshold``, ``template``, ``deadline_milliseconds``.

        Raises:
            BadRequestError: a name or a value that isn't known.
        """
        known = {"output", "top_k", "threshold", "template", "deadline_milliseconds"}
        unknown = sorted(set(parameters) - known - _PROTOCOLS_OWN)
        if unknown:
            raise BadRequestError(
                "parameter", f"{unknown[0][:40]!r} isn't a parameter; there are {sorted(known)}"
            )
        milliseconds = _number(parameters, "deadline_milliseconds", 0)
        return cls(
            output=_coding(parameters.get("output", "raw")),
            top_k=_number(parameters, "top_k", 0),
            threshold=_share(parameters.get("threshold", 0.0)),
            template=_template(parameters.get("template", "{}")),
            deadline_seconds=milliseconds / 1000 if milliseconds else None,
        )


def _coding(value: object) -> Coding:
    if value not in get_args(Coding):
        raise BadRequestError("parameter", f"'output' must be one of {list(get_args(Coding))}")
    return cast("Coding", value)


def _number(parameters: Mapping[str, Any], name: str, default: int) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or not 0 <= value <= 10**6:
        raise BadRequestError("parameter", f"{name!r} must be a whole number, 0 to 1000000")
    return value


def _share(value: object) -> float:
    if type(value) not in {int, float} or not 0 <= cast("float", value) <= 1:
        raise BadRequestError("parameter", "'threshold' must be a number, 0 to 1")
    return float(cast("float", value))


def _template(value: object) -> str:
    if not isinstance(value, str) or value.count("{}") != 1 or len(value) > _MAX_TEMPLATE:
        raise BadRequestError(
            "parameter", f"'template' must hold '{{}}' once, in {_MAX_TEMPLATE} characters at most"
        )
    return value

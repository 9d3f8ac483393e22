"""What a request asks about: the inputs of V2 and of V1, read alike.

V2 has the tensors ``image``, ``text`` and ``labels``; V1 has instances that are images or texts,
and ``labels`` beside them. Images aren't decoded here.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
import numpy as np
from numpy.typing import NDArray
from clipmill.serve.protocol.images import Source, decode_base64, images_from_tensor
from clipmill.serve.config import ServingConfig
from clipmill.serve.kserve_compat import InferInput, InferRequest, InvalidInput
from clipmill.serve.errors import BadRequestError
from collections.abc import Mapping
from typing import Any, Final, Literal, cast, get_args


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceInputs:
    """The inputs of a request, its images not yet decoded."""

    sources: tuple[Source, ...] = ()
    """Its images, as they came."""
    texts: tuple[str, ...] = ()
    """Texts to embed."""
    labels: tuple[str, ...] = ()
    """Names to choose from for each image."""

    @property
    def num_items(self) -> int:
        """Places that it takes in the queue: one an image, one for all its words."""
        return len(self.sources) + bool(self.texts or self.labels)


def parse_v2_inputs(request: InferRequest, config: ServingConfig) -> InferenceInputs:
    """The inputs of a V2 request.

    Raises:
        BadRequestError: there is another input than those three, or what it holds doesn't fit it.
    """
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(tensors) != len(request.inputs) or not tensors.keys() <= {"image", "text", "labels"}:
        raise BadRequestError(
            "protocol", "the inputs may be one 'image', one 'text' and one 'labels'"
        )
    values = {name: _values(tensor) for name, tensor in tensors.items()}
    sources: list[Source] = []
    if "image" in tensors:
        image = tensors["image"]
        sources = images_from_tensor(image.datatype, image.shape, values["image"])
    return InferenceInputs(
        sources=tuple(sources),
        texts=_words("text", values.get("text", np.empty(0, object)), config),
        labels=_words("labels", values.get("labels", np.empty(0, object)), config),
    )


def parse_v1_instances(request: dict[str, Any], config: ServingConfig) -> InferenceInputs:
    """``{"instances": [{"image_bytes": {"b64": "..."}}]}``, or ``{"text": "..."}`` instances.

    Raises:
        BadRequestError: it has another form.
    """
    instances, labels = request.get("instances"), request.get("labels", [])
    if not isinstance(instances, list) or not isinstance(labels, list):
        raise _unknown_form()
    try:
        if instances and all("text" in instance for instance in instances):
            texts = [instance["text"] for instance in instances]
            return InferenceInputs(
                texts=_words("text", texts, config), labels=_words("labels", labels, config)
            )
        encoded = [instance["image_bytes"]["b64"] for instance in instances]
    except (KeyError, TypeError) as error:
        raise _unknown_form() from error
    return InferenceInputs(
        sources=tuple(decode_base64(text) for text in encoded),
        labels=_words("labels", labels, config),
    )


def _unknown_form() -> BadRequestError:
    return BadRequestError(
        "protocol",
        'expected {"instances": [{"image_bytes": {"b64": "..."}}]} or [{"text": "..."}]',
    )


def _words(name: str, values: Iterable[object], config: ServingConfig) -> tuple[str, ...]:
    words = []
    for value in values:
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise BadRequestError("text", f"{name!r} holds bytes that aren't UTF-8") from error
        if not isinstance(text, str) or not 0 < len(text) <= config.max_text_length:
            raise BadRequestError(
                "text", f"{name!r} must hold texts of 1 to {config.max_text_length} characters"
            )
        words.append(text)
    if len(words) > config.max_texts:
        raise BadRequestError("text", f"{name!r} holds {len(words)}; at most {config.max_texts}")
    return tuple(words)


def _values(tensor: InferInput) -> NDArray[Any]:
    """The elements of a tensor that came as a list, or as binary data."""
    try:
        if not isinstance(tensor.data, list) or not tensor.data:
            array: NDArray[Any] = tensor.as_numpy()
        elif tensor.datatype == "UINT8" and isinstance(tensor.data[0], int):
            # Five times as fast as NumPy, and stricter: it takes 0 to 255 alone.
            array = np.frombuffer(bytes(tensor.data), np.uint8)
        elif tensor.datatype == "BYTES":
            array = np.empty(len(tensor.data), object)
            array[:] = tensor.data
        else:
            array = np.asarray(tensor.data)
    except (
        InvalidInput, ValueError, TypeError, OverflowError, MemoryError, struct.error
    ) as error:  # fmt: skip
        raise BadRequestError(
            "tensor",
            f"{tensor.name!r} doesn't hold {str(tensor.datatype)[:20]} "
            f"of shape {str(list(tensor.shape))[:60]}",
        ) from error
    if tensor.name != "image" and (
        tensor.datatype != "BYTES" or list(tensor.shape) != [array.size]
    ):
        raise BadRequestError("tensor", f"{tensor.name!r} must be BYTES of shape [n]")
    return array


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
    """How many of the most probable labels or classes to name, or objects to give; 0 gives all."""
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

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

from clipmill.serve.codecs import Source, decode_base64, sources_in_tensor
from clipmill.serve.config import ServeConfig
from clipmill.serve.framework import InferInput, InferRequest, InvalidInput
from clipmill.serve.refusal import BadRequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
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


def asked_v2(request: InferRequest, config: ServeConfig) -> Asked:
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
        sources = sources_in_tensor(image.datatype, image.shape, values["image"])
    return Asked(
        sources=tuple(sources),
        texts=_words("text", values.get("text", np.empty(0, object)), config),
        labels=_words("labels", values.get("labels", np.empty(0, object)), config),
    )


def asked_v1(request: dict[str, Any], config: ServeConfig) -> Asked:
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
            return Asked(
                texts=_words("text", texts, config), labels=_words("labels", labels, config)
            )
        encoded = [instance["image_bytes"]["b64"] for instance in instances]
    except (KeyError, TypeError) as error:
        raise _unknown_form() from error
    return Asked(
        sources=tuple(decode_base64(text) for text in encoded),
        labels=_words("labels", labels, config),
    )


def _unknown_form() -> BadRequestError:
    return BadRequestError(
        "protocol",
        'expected {"instances": [{"image_bytes": {"b64": "..."}}]} or [{"text": "..."}]',
    )


def _words(name: str, values: Iterable[object], config: ServeConfig) -> tuple[str, ...]:
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

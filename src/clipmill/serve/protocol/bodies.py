"""Bodies of the Open Inference Protocol (V2, with binary tensors) and of V1 as KServe's types.

KServe reads binary tensors itself, but makes text of BYTES, which no encoded image survives, and
Python lists of numbers; and it writes JSON through per-element Python. So bodies are read and
written here, and the rest of the protocol is KServe's.
"""

import base64
import re
import struct
from dataclasses import dataclass
from typing import Any, Final
import numpy as np
import orjson
from numpy.typing import NDArray
from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse, RequestedOutput
from clipmill.serve.errors import BadRequestError
from collections.abc import Mapping
from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""HTTP header: length of the JSON that comes before binary tensors, bytes."""

_LENGTH: Final = re.compile("[0-9]{1,12}")  # Python refuses to read a number of 5,000 digits
_MAX_INPUTS: Final = 3
_IMAGE_STARTS: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"RIFF": "image/webp",
}


@dataclass(frozen=True, slots=True)
class Body:
    """A response's body and headers."""

    data: bytes
    headers: dict[str, str]


def read_v2(body: bytes, header_length: str | None, model: str) -> InferRequest:
    """A V2 request; ``header_length`` is the HTTP header, None for plain JSON.

    Raises:
        BadRequestError: it isn't such a request.
    """
    if header_length is None:
        num_json_bytes = len(body)
    elif _LENGTH.fullmatch(header_length) and int(header_length) <= len(body):
        num_json_bytes = int(header_length)
    else:
        raise BadRequestError("protocol", f"{HEADER_LENGTH} isn't the length of the body's JSON")
    request = _json_object(body[:num_json_bytes])
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= _MAX_INPUTS:
        raise BadRequestError("protocol", f"'inputs' must list 1 to {_MAX_INPUTS} tensors")
    tensors, binaries, place = [], [], num_json_bytes
    for value in inputs:
        tensor, num_bytes = _parse_tensor(value, len(body) - place)
        tensors.append(tensor)
        binaries.append(None if num_bytes is None else body[place : place + num_bytes])
        place += num_bytes or 0
    if place != len(body):
        raise BadRequestError(
            "tensor", f"{len(body) - place} bytes follow the JSON that no 'binary_data_size' claims"
        )
    identity = request.get("id")
    return InferRequest(
        model_name=model,
        request_id=None if identity is None else str(identity),
        parameters=_parameters(request),
        infer_inputs=tensors,
        raw_inputs=binaries,
        request_outputs=_requested_outputs(request.get("outputs")),
    )


def write_v2(response: InferResponse, *, binary: bool) -> Body:
    """A V2 response whose outputs hold NumPy arrays, as JSON or as JSON and binary tensors."""
    outputs, tensors = [], []
    for output in response.outputs:
        described = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        array = np.ascontiguousarray(output.data)
        if binary:
            data = _bytes_tensor(array) if output.datatype == "BYTES" else array.tobytes()
            described["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        else:
            described["data"] = _json_values(array)
        outputs.append(described)
    header = _dump(
        {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "parameters": response.parameters,
            "outputs": outputs,
        }
    )
    if not binary:
        return Body(header, {"Content-Type": "application/json"})
    return Body(
        b"".join([header, *tensors]),
        {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
    )


def read_v1(body: bytes) -> dict[str, Any]:
    """A V1 request's JSON object; BadRequestError for anything else."""
    return _json_object(body)


def write_v1(response: dict[str, Any]) -> Body:
    """A V1 response: arrays as nested lists, files as ``{"b64": ...}``."""
    predictions = [
        {name: _v1_value(value) for name, value in each.items()} for each in response["predictions"]
    ]
    return Body(_dump({"predictions": predictions}), {"Content-Type": "application/json"})


def _v1_value(value: object) -> object:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [label.decode() for label in value]
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


def _bytes_tensor(array: NDArray[Any]) -> bytes:
    """Each element with its length before it, as the protocol has BYTES."""
    return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel())


def _json_values(array: NDArray[Any]) -> object:
    if array.dtype == np.float16:
        return array.ravel().astype(np.float32)
    if array.dtype == object:
        return [_text(value) for value in array.ravel()]
    return array.ravel()


def _text(value: bytes) -> str:
    """JSON has no bytes: labels are text, files come as base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _not_json(data: bytes, error: Exception) -> str:
    """Say what to do about a body that isn't JSON."""
    kind = next((kind for start, kind in _IMAGE_STARTS.items() if data.startswith(start)), None)
    if kind:
        return f"it is an image; send it with the header Content-Type: {kind}"
    if data.startswith(b"--"):
        return (
            "it is a form; send the image alone, with curl --data-binary @FILE "
            "-H 'Content-Type: image/jpeg' instead of -F"
        )
    return str(error)


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            "protocol", f"the request isn't JSON: {_not_json(data, error)}"
        ) from error
    if not isinstance(value, dict):
        raise BadRequestError("protocol", "the request isn't a JSON object")
    return value


def _parse_tensor(value: object, num_left: int) -> tuple[InferInput, int | None]:
    """The tensor, and how many of the bytes left after the JSON are its binary data, if any."""
    if not isinstance(value, dict):
        raise BadRequestError("protocol", "an input must be an object")
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise BadRequestError("protocol", "an input must have a name and a datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise BadRequestError("tensor", "an input's shape must be a list of numbers above zero")
    data, parameters = value.get("data"), _parameters(value)
    tensor = InferInput(name=name, shape=shape, datatype=datatype, data=data, parameters=parameters)
    if isinstance(data, list):
        return tensor, None
    num_bytes = parameters.get("binary_data_size")
    if type(num_bytes) is not int or not 0 <= num_bytes <= num_left:
        raise BadRequestError(
            "tensor",
            f"{name[:40]!r} has neither 'data' nor a 'binary_data_size' within the {num_left} "
            "bytes that are left after the JSON",
        )
    return tensor, num_bytes


def _requested_outputs(value: object) -> list[RequestedOutput] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadRequestError("protocol", "'outputs' must be a list of objects")
    return [RequestedOutput(name=v.get("name"), parameters=_parameters(v)) for v in value]


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError("protocol", "'parameters' must be an object")
    return parameters


def _dump(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


_NUMBERS: Final = frozenset({"top_k", "deadline_milliseconds"})
_FRACTION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")


def is_image_body(headers: Mapping[str, str]) -> bool:
    """Whether the body is an image file."""
    return headers.get("content-type", "").startswith("image/")


def request_from_image(body: bytes, query: Mapping[str, str], model: str) -> InferRequest:
    """The V2 request that an image file and a query stand for; ``labels`` are comma-separated."""
    parameters: dict[str, Any] = {}
    for name, text in query.items():
        if name == "binary_data_output":
            parameters[name] = text == "true"
        elif name in _NUMBERS and text.isascii() and text.isdigit() and len(text) <= 9:
            parameters[name] = int(text)
        elif name == "threshold" and _FRACTION.fullmatch(text):
            parameters[name] = float(text)
        elif name != "labels":
            parameters[name] = text
    inputs = [InferInput(name="image", datatype="BYTES", shape=[1])]
    raw: list[bytes | None] = [struct.pack("<I", len(body)) + body]
    labels = [label.strip() for label in query.get("labels", "").split(",") if label.strip()]
    if labels:
        inputs.append(InferInput(name="labels", datatype="BYTES", shape=[len(labels)], data=labels))
        raw.append(None)
    return InferRequest(
        model_name=model, infer_inputs=inputs, raw_inputs=raw, parameters=parameters
    )


def png_response_body(response: InferResponse) -> Body | None:
    """The one PNG in an answer, as it is; None for an answer of another kind."""
    first = response.outputs[0]
    if len(response.outputs) > 1 or first.datatype != "BYTES" or list(first.shape) != [1]:
        return None
    return Body(first.data[0], {"Content-Type": "image/png"})

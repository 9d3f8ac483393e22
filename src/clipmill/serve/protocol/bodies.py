"""Bodies of the Open Inference Protocol (V2, with binary tensors) and of V1, as KServe's types.

KServe parses binary tensors itself, but turns BYTES into text, which corrupts encoded images, and
into Python lists of numbers; and it writes JSON through Python, element by element. So bodies are
parsed and encoded here; the rest of the protocol is KServe's.

The shortest V2 request is an image file as the body, with parameters in the query, for curl and
the browser: ``POST /v2/models/NAME/infer?output=png`` with ``Content-Type: image/jpeg`` returns a
PNG.
"""

import base64
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse, RequestedOutput
from clipmill.serve.protocol.request import parse_text_value

Payload: TypeAlias = InferRequest | dict[str, Any]
"""A parsed request: V2's, or V1's object."""
Response: TypeAlias = InferResponse | dict[str, Any]
"""A response before its encoding: V2's, or V1's object."""

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""HTTP header: length of the JSON that comes before binary tensors, bytes."""

_LENGTH: Final = re.compile("[0-9]{1,12}")  # Python refuses to read a number of 5,000 digits
_MAX_INPUTS: Final = 3
_IMAGE_STARTS: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"RIFF": "image/webp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestBody:
    """Body of an HTTP request, with what decides its meaning."""

    protocol: Literal["v1", "v2"]
    """Protocol of its route."""
    data: bytes
    """Bytes of the body."""
    headers: Mapping[str, str]
    """HTTP headers."""
    query: Mapping[str, str]
    """Parameters in the URL's query."""

    @property
    def is_image(self) -> bool:
        """True if the body is an image file."""
        return self.protocol == "v2" and self.headers.get("content-type", "").startswith("image/")


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """Body of an HTTP response, and its headers."""

    data: bytes
    headers: dict[str, str]


def parse_request(body: RequestBody, model: str) -> Payload:
    """Return the request to ``model`` in a body; raises BadRequestError if it isn't one."""
    if body.protocol == "v1":
        return _json_object(body.data)
    if body.is_image:
        return _request_from_image(body, model)
    return parse_v2(body.data, body.headers.get(HEADER_LENGTH), model)


def encode_response(body: RequestBody, payload: Payload, response: Response) -> ResponseBody:
    """Return the response's body, in the form for which the request in ``body`` asks."""
    if isinstance(response, dict):
        return encode_v1(response)
    if body.is_image and (png := _only_png(response)):
        return ResponseBody(png, {"Content-Type": "image/png"})
    return encode_v2(response, binary=_binary_outputs(payload, response))


def parse_v2(body: bytes, header_length: str | None, model: str) -> InferRequest:
    """Return a V2 request; ``header_length`` is the HTTP header, None for plain JSON.

    Raises:
        BadRequestError: it isn't such a request.
    """
    if header_length is None:
        num_json_bytes = len(body)
    elif _LENGTH.fullmatch(header_length) and int(header_length) <= len(body):
        num_json_bytes = int(header_length)
    else:
        raise BadRequestError(
            RejectReason.PROTOCOL, f"{HEADER_LENGTH} isn't the length of the body's JSON"
        )
    request = _json_object(body[:num_json_bytes])
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= _MAX_INPUTS:
        raise BadRequestError(
            RejectReason.PROTOCOL, f"'inputs' must list 1 to {_MAX_INPUTS} tensors"
        )
    tensors, binaries, position = [], [], num_json_bytes
    for value in inputs:
        tensor, num_bytes = _parse_tensor(value, len(body) - position)
        tensors.append(tensor)
        binaries.append(None if num_bytes is None else body[position : position + num_bytes])
        position += num_bytes or 0
    if position != len(body):
        raise BadRequestError(
            RejectReason.TENSOR,
            f"{len(body) - position} bytes follow the JSON that no 'binary_data_size' claims",
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


def encode_v2(response: InferResponse, *, binary: Collection[str]) -> ResponseBody:
    """Encode a V2 response with NumPy arrays as JSON, the tensors named ``binary`` after it."""
    outputs, tensors = [], []
    for output in response.outputs:
        description = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        array = np.ascontiguousarray(output.data)
        if output.name in binary:
            data = _bytes_tensor(array) if output.datatype == "BYTES" else array.tobytes()
            description["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        else:
            description["data"] = _json_values(array)
        outputs.append(description)
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
        return ResponseBody(header, {"Content-Type": "application/json"})
    return ResponseBody(
        b"".join([header, *tensors]),
        {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
    )


def encode_v1(response: dict[str, Any]) -> ResponseBody:
    """Encode a V1 response: arrays as nested lists, files as ``{"b64": ...}``."""
    predictions = [
        {name: _v1_value(value) for name, value in each.items()} for each in response["predictions"]
    ]
    return ResponseBody(_dump({"predictions": predictions}), {"Content-Type": "application/json"})


def _request_from_image(body: RequestBody, model: str) -> InferRequest:
    """Return the V2 request of an image file and a query; ``labels`` are comma-separated."""
    parameters: dict[str, Any] = {}
    for name, text in body.query.items():
        if text in {"true", "false"} and name == "binary_data_output":
            parameters[name] = text == "true"
        elif name != "labels":
            parameters[name] = parse_text_value(name, text)
    inputs = [InferInput(name="image", datatype="BYTES", shape=[1])]
    raw: list[bytes | None] = [length_prefixed(body.data)]
    labels = [label.strip() for label in body.query.get("labels", "").split(",") if label.strip()]
    if labels:
        inputs.append(InferInput(name="labels", datatype="BYTES", shape=[len(labels)], data=labels))
        raw.append(None)
    return InferRequest(
        model_name=model, infer_inputs=inputs, raw_inputs=raw, parameters=parameters
    )


def _only_png(response: InferResponse) -> bytes | None:
    """Return the one PNG of a response; None for other outputs."""
    first = response.outputs[0]
    if len(response.outputs) > 1 or first.datatype != "BYTES" or list(first.shape) != [1]:
        return None
    data: bytes = first.data[0]
    return data


def _binary_outputs(request: InferRequest, response: InferResponse) -> list[str]:
    """Return the names of outputs that shall be binary: as each asks, or else as the request."""
    wishes = {output.name: output.binary_data for output in request.request_outputs or ()}
    default = request.use_binary_outputs
    names = [output.name for output in response.outputs]
    return [name for name in names if (default if wishes.get(name) is None else wishes[name])]


def length_prefixed(data: bytes) -> bytes:
    """Return an element of a binary BYTES tensor: its length, then the element."""
    return struct.pack("<I", len(data)) + data


def _v1_value(value: object) -> object:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [label.decode() for label in value]
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


def _bytes_tensor(array: NDArray[Any]) -> bytes:
    """Return elements with their lengths before them, the protocol's form of BYTES."""
    return b"".join(length_prefixed(value) for value in array.ravel())


def _json_values(array: NDArray[Any]) -> object:
    if array.dtype == np.float16:
        return array.ravel().astype(np.float32)
    if array.dtype == object:
        return [_text(value) for value in array.ravel()]
    return array.ravel()


def _text(value: bytes) -> str:
    """Return bytes as JSON can hold them: labels as text, files as base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _describe_non_json(data: bytes, error: Exception) -> str:
    """Return what a body is that isn't JSON, and how to send it."""
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
            RejectReason.PROTOCOL, f"the request isn't JSON: {_describe_non_json(data, error)}"
        ) from error
    if not isinstance(value, dict):
        raise BadRequestError(RejectReason.PROTOCOL, "the request isn't a JSON object")
    return value


def _parse_tensor(value: object, num_left: int) -> tuple[InferInput, int | None]:
    """Return the tensor and the size of its binary data, of ``num_left`` bytes after the JSON."""
    if not isinstance(value, dict):
        raise BadRequestError(RejectReason.PROTOCOL, "an input must be an object")
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise BadRequestError(RejectReason.PROTOCOL, "an input must have a name and a datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise BadRequestError(
            RejectReason.TENSOR, "an input's shape must be a list of numbers above zero"
        )
    data, parameters = value.get("data"), _parameters(value)
    tensor = InferInput(name=name, shape=shape, datatype=datatype, data=data, parameters=parameters)
    if isinstance(data, list):
        return tensor, None
    num_bytes = parameters.get("binary_data_size")
    if type(num_bytes) is not int or not 0 <= num_bytes <= num_left:
        raise BadRequestError(
            RejectReason.TENSOR,
            f"{name[:40]!r} has neither 'data' nor a 'binary_data_size' within the {num_left} "
            "bytes that are left after the JSON",
        )
    return tensor, num_bytes


def _requested_outputs(value: object) -> list[RequestedOutput] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadRequestError(RejectReason.PROTOCOL, "'outputs' must be a list of objects")
    return [RequestedOutput(name=v.get("name"), parameters=_parameters(v)) for v in value]


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError(RejectReason.PROTOCOL, "'parameters' must be an object")
    return parameters


def _dump(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

"""Bodies of the Open Inference Protocol (V2, with binary tensors) and of V1 as KServe's types.

KServe reads binary tensors itself, but makes text of BYTES, which no encoded image survives, and
Python lists of numbers; and it writes JSON through per-element Python. So bodies are read and
written here, and the rest of the protocol is KServe's.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from clipmill.serve.codecs import Source, decode_base64
from clipmill.serve.framework import InferInput, InferRequest, InferResponse, RequestedOutput
from clipmill.serve.refusal import BadRequestError

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""HTTP header: length of the JSON that comes before binary tensors, bytes."""


@dataclass(frozen=True, slots=True)
class Body:
    """A response's body and headers."""

    data: bytes
    headers: dict[str, str]


def read_v2(body: bytes, header_length: str | None, model: str) -> InferRequest:
    """A V2 request with its one input; ``header_length`` is the HTTP header, None for plain JSON.

    Raises:
        BadRequestError: it isn't such a request.
    """
    if header_length is None:
        num_json_bytes = len(body)
    elif header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body):
        num_json_bytes = int(header_length)
    else:
        raise BadRequestError("protocol", f"{HEADER_LENGTH} isn't the length of the body's JSON")
    request = _json_object(body[:num_json_bytes])
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError("protocol", "'inputs' must list one tensor, 'image'")
    tensor, binary = _input_tensor(inputs[0], body[num_json_bytes:])
    identity = request.get("id")
    return InferRequest(
        model_name=model,
        request_id=None if identity is None else str(identity),
        parameters=_parameters(request),
        infer_inputs=[tensor],
        raw_inputs=None if binary is None else [binary],
        request_outputs=_requested_outputs(request.get("outputs")),
    )


def write_v2(response: InferResponse, *, binary: bool) -> Body:
    """A V2 response whose outputs hold NumPy arrays, as JSON or as JSON and binary tensors."""
    outputs, tensors = [], []
    for output in response.outputs:
        described = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        array = np.ascontiguousarray(output.data)
        if binary:
            described["parameters"] = {"binary_data_size": array.nbytes}
            tensors.append(array.tobytes())
        else:
            described["data"] = array.ravel()
        outputs.append(described)
    header = _dump(
        {
            "model_name": response.model_name,
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
    """A V1 response, its arrays as nested lists."""
    return Body(_dump(response), {"Content-Type": "application/json"})


def sources_in_instances(request: dict[str, Any]) -> list[Source]:
    """The encoded images of ``{"instances": [{"image_bytes": {"b64": "..."}}]}``.

    Raises:
        BadRequestError: it has another form.
    """
    try:
        texts = [instance["image_bytes"]["b64"] for instance in request["instances"]]
    except (KeyError, TypeError) as error:
        raise BadRequestError(
            "protocol", 'expected {"instances": [{"image_bytes": {"b64": "..."}}]}'
        ) from error
    return [decode_base64(text) for text in texts]


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequestError("protocol", f"the request isn't JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("protocol", "the request isn't a JSON object")
    return value


def _input_tensor(value: dict[str, Any], rest: bytes) -> tuple[InferInput, bytes | None]:
    """The tensor, and its binary data if it comes after the JSON, in ``rest``."""
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if name != "image" or not isinstance(datatype, str):
        raise BadRequestError("protocol", "the input must be 'image', with a datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise BadRequestError("tensor", "the input's shape must be a list of numbers above zero")
    data, parameters = value.get("data"), _parameters(value)
    tensor = InferInput(name=name, shape=shape, datatype=datatype, data=data, parameters=parameters)
    if isinstance(data, list):
        return tensor, None
    num_bytes = parameters.get("binary_data_size")
    if type(num_bytes) is not int or num_bytes != len(rest):
        raise BadRequestError(
            "tensor",
            f"'image' has neither 'data' nor a 'binary_data_size' of the {len(rest)} bytes "
            "that follow the JSON",
        )
    return tensor, rest


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

"""Bodies of the Open Inference Protocol (V2, with binary tensors) and of V1, as KServe's types.

KServe parses binary tensors itself, but turns BYTES into text, which corrupts encoded images, and
into Python lists of numbers; and it writes JSON through Python, element by element. So bodies are
parsed and encoded here; the rest of the protocol is KServe's.

The shortest V2 request is an image file as the body, with parameters in the query, for curl and
the browser: ``POST /v2/models/NAME/infer?output=png`` returns a PNG. A form with a file does too.
"""

import base64
import re
import struct
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from clipmill.images import image_format
from clipmill.serve.errors import (
    BadRequestError,
    PayloadTooLargeError,
    RejectReason,
    UnsupportedEncodingError,
)
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
ENCODINGS: Final = ("gzip", "deflate")
"""Values of Content-Encoding that are read."""
_ZLIB_OR_GZIP: Final = 32 + zlib.MAX_WBITS
_JSON_PIECE: Final = 2**15  # elements that are written as JSON at once
_JSON_TURN: Final = threading.Lock()
_MIN_JSON_BYTES: Final = 2  # of an element: a digit and a comma


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
        """True if the body is an image file, by its type or by its first bytes."""
        if self.protocol != "v2" or HEADER_LENGTH in self.headers:
            return False
        return self._media_type.startswith("image/") or image_format(self.data) is not None

    @property
    def is_form(self) -> bool:
        """True if the body is a form with files."""
        return self.protocol == "v2" and self._media_type == "multipart/form-data"

    @property
    def _media_type(self) -> str:
        # They are case-insensitive (RFC 9110, section 8.3.1).
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """Body of an HTTP response, and its headers."""

    data: bytes
    headers: dict[str, str]


def require_known_encoding(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedEncodingError for a body that ``decompress`` can't read."""
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() not in {*ENCODINGS, "identity"}:
        raise UnsupportedEncodingError(
            f"the Content-Encoding {encoding[:40]!r} isn't read; send gzip, deflate, or none"
        )


def decompress(body: RequestBody, max_bytes: int) -> RequestBody:
    """Return a body without its Content-Encoding.

    Raises:
        PayloadTooLargeError: it has more than ``max_bytes``.
        BadRequestError: it isn't compressed as its header says.
    """
    encoding = body.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    # Some clients send deflate without the header that RFC 9110 has around it.
    is_bare = encoding == "deflate" and body.data[:1] and body.data[0] & 15 != zlib.DEFLATED
    decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else _ZLIB_OR_GZIP)
    try:
        data = decoder.decompress(body.data, max_bytes + 1)
    except zlib.error as error:
        raise BadRequestError(RejectReason.ENCODING, f"the body isn't {encoding}") from error
    if len(data) > max_bytes:
        raise PayloadTooLargeError(
            f"the request has more than {max_bytes} bytes when decompressed (max_request_bytes)"
        )
    if not decoder.eof or decoder.unused_data:
        raise BadRequestError(RejectReason.ENCODING, f"the body isn't one whole {encoding} stream")
    return replace(body, data=data)


def parse_request(body: RequestBody, model: str) -> Payload:
    """Return the request to ``model`` in a body; raises BadRequestError if it isn't one."""
    if body.protocol == "v1":
        return _json_object(body.data)
    if body.is_image:
        return _request_from_image(body.data, body.query, model)
    if body.is_form:
        return _request_from_form(body, model)
    return parse_v2(body.data, body.headers.get(HEADER_LENGTH), model)


def encode_response(
    body: RequestBody, payload: Payload, response: Response, max_bytes: int
) -> ResponseBody:
    """Return the response's body, in the form for which the request in ``body`` asks.

    Raises:
        BadRequestError: it would have more than ``max_bytes``.
    """
    if isinstance(response, dict):
        return encode_v1(response, max_bytes)
    if (body.is_image or body.is_form) and (png := _only_png(response)):
        return ResponseBody(png, {"Content-Type": "image/png"})
    binary = _binary_outputs(payload, response)
    return encode_v2(response, binary=binary, max_bytes=max_bytes)


def require_fitting_size(num_bytes: int, max_bytes: int) -> None:
    """Raise BadRequestError if a response of at least ``num_bytes`` is too large."""
    if num_bytes > max_bytes:
        raise BadRequestError(
            RejectReason.RESPONSE_SIZE,
            f"the response would have more than {max_bytes} bytes (max_response_bytes); ask for "
            "less: output=png or output=rle, a threshold or top_k, binary data, or a smaller image",
        )


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


def encode_v2(response: InferResponse, *, binary: Collection[str], max_bytes: int) -> ResponseBody:
    """Encode a V2 response with NumPy arrays as JSON, the tensors named ``binary`` after it."""
    require_fitting_size(
        sum(
            num_bytes(output.data) if output.name in binary else _min_json_bytes(output.data)
            for output in response.outputs
        ),
        max_bytes,
    )
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes | memoryview] = []
    for output in response.outputs:
        description = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        array = np.ascontiguousarray(output.data)
        if output.name in binary:
            is_bytes = output.datatype == "BYTES"
            data = _bytes_tensor(array) if is_bytes else array.ravel().view(np.uint8).data
            description["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        else:
            description["data"] = _json_values(array)
        outputs.append(description)
    header = encode_json(
        {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "parameters": response.parameters,
            "outputs": outputs,
        },
        max_bytes,
    )
    if not binary:
        return ResponseBody(header, {"Content-Type": "application/json"})
    return ResponseBody(
        b"".join([header, *tensors]),
        {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
    )


def encode_v1(response: dict[str, Any], max_bytes: int) -> ResponseBody:
    """Encode a V1 response: arrays as nested lists, files as ``{"b64": ...}``."""
    predictions = [
        {name: _v1_value(value) for name, value in each.items()} for each in response["predictions"]
    ]
    arrays = [v for each in predictions for v in each.values() if isinstance(v, np.ndarray)]
    require_fitting_size(sum(map(_min_json_bytes, arrays)), max_bytes)
    data = encode_json({"predictions": predictions}, max_bytes)
    return ResponseBody(data, {"Content-Type": "application/json"})


def encode_json(value: object, max_bytes: int) -> bytes:
    """Return the JSON text of a value with arrays; BadRequestError if it is too large.

    Large arrays are written piece by piece, by one thread at a time: orjson holds the interpreter's
    lock meanwhile, for which health probes wait. Masks and maps of less than eleven classes, the
    largest of all, are written by NumPy, which doesn't hold it.
    """
    pieces, num_bytes = [], 0
    for piece in _json_pieces(value):
        pieces.append(piece)
        num_bytes += len(piece)
        require_fitting_size(num_bytes, max_bytes)
    return b"".join(pieces)


def _json_pieces(value: object) -> Iterator[bytes]:
    if isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield (b"," if index else b"{") + orjson.dumps(name) + b":"
            yield from _json_pieces(item)
        yield b"}" if value else b"{}"
    elif isinstance(value, np.ndarray) and value.size > _JSON_PIECE:
        # Rows of a one-dimensional array are its elements, of which many fit into a piece.
        num_rows = max(1, _JSON_PIECE * len(value) // value.size)
        for start in range(0, len(value), num_rows):
            yield b"," if start else b"["
            if num_rows == 1 and value.ndim > 1:
                yield from _json_pieces(value[start])
            else:
                with _JSON_TURN:
                    piece = _dump_piece(value[start : start + num_rows])
                yield piece[1:-1]
        yield b"]"
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield b"," if index else b"["
            yield from _json_pieces(item)
        yield b"]"
    else:
        yield _dump(value)


def _dump_piece(array: NDArray[Any]) -> bytes:
    """Return the JSON of an array (..., W) of numbers, as nested lists without spaces."""
    if array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 9:
        return _dump(array)
    text = np.add(array, ord("0"), dtype=np.uint8, casting="unsafe")[..., np.newaxis]
    for _ in range(array.ndim):
        *outer, count, width = text.shape
        joined = np.empty((*outer, count * (width + 1) + 1), np.uint8)
        items = joined[..., :-1].reshape(*outer, count, width + 1)  # a view
        items[..., 0] = ord(",")
        items[..., 1:] = text
        joined[..., 0], joined[..., -1] = ord("["), ord("]")
        text = joined
    data: bytes = text.tobytes()
    return data


def _request_from_form(body: RequestBody, model: str) -> InferRequest:
    """Return the V2 request of a form: its file is the image, its other fields are parameters."""
    fields = dict(body.query)
    image: bytes | None = None
    for name, is_file, data in _form_fields(body):
        if image is None and (is_file or image_format(data) is not None):
            image = data
        else:
            fields[name] = data.decode("utf-8", "replace")
    if image is None:
        raise BadRequestError(
            RejectReason.PROTOCOL, "the form has no file; send the image as one: -F image=@FILE"
        )
    return _request_from_image(image, fields, model)


def _form_fields(body: RequestBody) -> Iterator[tuple[str, bool, bytes]]:
    """Yield each field's name, whether it is a file, and its content (RFC 7578)."""
    head = Message()
    head["Content-Type"] = body.headers["content-type"]
    boundary = str(head.get_param("boundary", "")).encode()
    parts = (b"\r\n" + body.data).split(b"\r\n--" + boundary)
    if not boundary or len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise BadRequestError(RejectReason.PROTOCOL, "the form isn't a whole multipart/form-data")
    for part in parts[1:-1]:
        text, _, content = part.partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(text.lstrip())
        name = headers.get_param("name", "", "content-disposition")
        yield str(name), headers.get_filename() is not None, content


def _request_from_image(data: bytes, query: Mapping[str, str], model: str) -> InferRequest:
    """Return the V2 request of an image file and a query; ``labels`` are comma-separated."""
    parameters: dict[str, Any] = {}
    for name, text in query.items():
        if text in {"true", "false"} and name == "binary_data_output":
            parameters[name] = text == "true"
        elif name != "labels":
            parameters[name] = parse_text_value(name, text)
    inputs = [InferInput(name="image", datatype="BYTES", shape=[1])]
    raw: list[bytes | None] = [length_prefixed(data)]
    labels = [label.strip() for label in query.get("labels", "").split(",") if label.strip()]
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


def num_bytes(array: NDArray[Any]) -> int:
    """Return the size of an output as a binary tensor."""
    if array.dtype == object:
        return sum(4 + len(value) for value in array.ravel())
    return array.nbytes


def _min_json_bytes(array: NDArray[Any]) -> int:
    """Return the size that the array has at least as JSON; object arrays hold files."""
    return num_bytes(array) if array.dtype == object else array.size * _MIN_JSON_BYTES


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


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            RejectReason.PROTOCOL,
            f"the request is neither JSON nor an image file that is known; send an image with "
            f"Content-Type: image/jpeg, or correct the JSON: {error}",
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

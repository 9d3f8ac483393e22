"""Asking an endpoint, with the standard library and NumPy alone, or with curl.

Shapes: H W the image's height and width.
"""

import base64
import json
import shlex
import struct
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import ServerError

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_TYPES: Final = {"UINT8": "<u1", "FP32": "<f4"}
_SHOWN_BYTES: Final = 300


def query(
    url: str, model: str, image_HW3: NDArray[np.uint8], *, timeout_seconds: float = 60.0
) -> NDArray[Any]:
    """The model's output (H, W) for an RGB image.

    Raises:
        ServerError: nobody listens there, or the answer isn't 200.
    """
    tensor = {"datatype": "UINT8", "shape": list(image_HW3.shape)}
    body, headers = _request(tensor, image_HW3.tobytes())
    address = f"{url}/v2/models/{model}/infer"
    request = urllib.request.Request(address, body, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:  # noqa: S310
            answer = cast("HTTPResponse", response)
            output_1HW = read_answer(answer.read(), int(answer.headers[_HEADER_LENGTH]))
    except urllib.error.HTTPError as error:
        text = error.read(_SHOWN_BYTES).decode("utf-8", "replace")
        raise _failure(address, f"answered {error.code}: {text}") from error
    except OSError as error:
        raise _failure(address, f"can't be asked: {error}") from error
    output_HW: NDArray[Any] = output_1HW[0]
    return output_HW


def binary_request(image: bytes) -> tuple[bytes, dict[str, str]]:
    """A V2 body that carries an encoded image, and its HTTP headers."""
    tensor = {"datatype": "BYTES", "shape": [1]}
    return _request(tensor, struct.pack("<I", len(image)) + image)


def read_answer(body: bytes, header_length: int) -> NDArray[Any]:
    """The array (n, H, W) of a binary V2 response.

    ``header_length`` is its Inference-Header-Content-Length; the array is what follows it.
    """
    (output,) = json.loads(body[:header_length])["outputs"]
    dtype = np.dtype(_TYPES[output["datatype"]])
    array: NDArray[Any] = np.frombuffer(body, dtype, offset=header_length)
    return array.reshape(output["shape"])


def curl_command(
    url: str, model: str, *, body_path: Path, header_length: int, output_path: Path
) -> str:
    """A shell line that posts the body of ``binary_request`` and writes the response's body.

    It prints the response's headers. In the file the tensor comes last: ``tail -c`` cuts it.
    """
    return _curl(
        f"{url}/v2/models/{model}/infer",
        {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(header_length)},
        body_path=body_path,
        output_path=output_path,
    )


def v1_request(image: bytes) -> bytes:
    """A V1 body, plain JSON, that carries an encoded image."""
    text = base64.b64encode(image).decode("ascii")
    return json.dumps({"instances": [{"image_bytes": {"b64": text}}]}).encode()


def v1_curl_command(url: str, model: str, *, body_path: Path, output_path: Path) -> str:
    """A shell line that posts the body of ``v1_request`` and writes the JSON that comes back."""
    return _curl(
        f"{url}/v1/models/{model}:predict",
        {"Content-Type": "application/json"},
        body_path=body_path,
        output_path=output_path,
    )


def _curl(address: str, headers: dict[str, str], *, body_path: Path, output_path: Path) -> str:
    words = ["curl", "--silent", "--show-error", "--dump-header", "-"]
    for name, value in headers.items():
        words += ["--header", f"{name}: {value}"]
    words += ["--data-binary", f"@{body_path}", "--output", str(output_path), address]
    return shlex.join(words)


def _request(tensor: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, str]]:
    described = {"name": "image", **tensor, "parameters": {"binary_data_size": len(data)}}
    request = {"inputs": [described], "parameters": {"binary_data_output": True}}
    header = json.dumps(request).encode()
    return header + data, {
        "Content-Type": "application/octet-stream",
        _HEADER_LENGTH: str(len(header)),
    }


def _failure(address: str, what: str) -> ServerError:
    return ServerError(
        f"{address} {what}",
        expected="a ready server, the name of a model it serves, an image within its limits",
        action="see the server's log and its /v2/models",
    )

"""The shortest request: an image file as the body, wishes in the query, for curl and the browser.

``POST /v2/models/NAME/infer?output=png`` with ``Content-Type: image/jpeg`` answers with a PNG.
"""

import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from clipmill.serve.framework import InferInput, InferRequest, InferResponse
from clipmill.serve.wire import Body

_NUMBERS: Final = frozenset({"top_k", "deadline_milliseconds"})
_FRACTION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")


def is_picture(headers: Mapping[str, str]) -> bool:
    """Whether the body is an image file."""
    return headers.get("content-type", "").startswith("image/")


def picture_request(body: bytes, query: Mapping[str, str], model: str) -> InferRequest:
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


def picture_body(response: InferResponse) -> Body | None:
    """The one PNG in an answer, as it is; None for an answer of another kind."""
    first = response.outputs[0]
    if len(response.outputs) > 1 or first.datatype != "BYTES" or list(first.shape) != [1]:
        return None
    return Body(first.data[0], {"Content-Type": "image/png"})

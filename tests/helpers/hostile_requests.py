"""Requests as an attacker, or a broken client, may send them; each is reproducible by its number.

A case says which statuses are right. Bodies are drawn from parts of right ones: cut, flipped,
doubled, renamed, and given other types, shapes, lengths and headers.
"""

import base64
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipmill.serve.client import binary_request
from clipmill.tasks.visualization import encode_png

PIXELS = np.random.default_rng(9).integers(0, 256, (24, 32, 3), np.uint8)
PNG = encode_png(PIXELS)
LENGTH = "Inference-Header-Content-Length"
REFUSED = frozenset({400, 404, 405, 413, 414, 431, 501})
"""What a request that can't be answered may get; never a 5xx but "not implemented"."""

_SCALARS: list[Any] = [
    None, True, -1, 0, 1, 2**63, 2**70, 1e308, "", "image", "BYTES", "UINT8", "FP32", "é\u0000",
    [], {}, [[]], [None], {"b64": 1}, "A" * 5000, [1] * 500, {"a": {"a": {"a": {}}}},
]  # fmt: skip
_NAMES = [
    "seg",
    "depth",
    "nobody",
    "..",
    "%2e%2e%2f",
    "seg%00",
    "a" * 3000,
    "seg/../depth",
    "é",
    " ",
]


@dataclass(frozen=True)
class Hostile:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str | bytes]


def hostile(number: int) -> Hostile:
    """The request of that number."""
    draw = np.random.default_rng([77, number])
    make = (_mutated_json, _mutated_binary, _hostile_image, _odd_path, _v1, _picture)
    return make[number % len(make)](draw)


def hostile_image(draw: np.random.Generator) -> bytes:
    """A file that is no image, or one that no sane client sends."""
    width, height = draw.choice([1, 2, 5, 7, 4097, 20_000, 2**31 - 1, 0], 2)
    # A header alone says how large a PNG is: a bomb needs no pixels.
    bomb = PNG[:16] + struct.pack(">II", width, height) + PNG[24:]
    cut = PNG[: draw.integers(0, len(PNG))]
    flipped = bytearray(PNG)
    for place in draw.integers(0, len(PNG), 12):
        flipped[place] ^= int(draw.integers(1, 256))
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\xff" * 14
    kinds = [bomb, cut, bytes(flipped), draw.bytes(200), b"", b"GIF89a" + bytes(20), webp]
    return kinds[draw.integers(len(kinds))]


def _tensor() -> dict[str, Any]:
    return {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "data": [base64.b64encode(PNG).decode()],
        "parameters": {},
    }


def _changed(value: Any, draw: np.random.Generator) -> Any:
    """The value with one of its parts, somewhere, replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = list(value)[draw.integers(len(value))]
        kind = draw.integers(4)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, key + "x": value[key]}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        index = draw.integers(len(value))
        if draw.random() < 0.3:
            return [*value, value[index]]
        return [*value[:index], _changed(value[index], draw), *value[index + 1 :]]
    return _SCALARS[draw.integers(len(_SCALARS))]


def _mutated_json(draw: np.random.Generator) -> Hostile:
    request: Any = {"inputs": [_tensor()], "outputs": [{"name": "classes"}], "id": "7"}
    request["parameters"] = {"output": "raw", "top_k": 0, "deadline_milliseconds": 5000}
    for _ in range(draw.integers(1, 4)):
        request = _changed(request, draw)
    body = json.dumps(request).encode()
    if draw.random() < 0.2:
        body = body[: draw.integers(0, len(body))]
    if draw.random() < 0.05:
        body = b"[" * 100_000
    return Hostile("POST", "/v2/models/seg/infer", body, {"Content-Type": "application/json"})


def _mutated_binary(draw: np.random.Generator) -> Hostile:
    body, headers = binary_request(PNG)
    header = json.loads(body[: int(headers[LENGTH])])
    for _ in range(draw.integers(0, 3)):
        header = _changed(header, draw)
    text = json.dumps(header).encode()
    rest = body[int(headers[LENGTH]) :]
    if draw.random() < 0.5:
        prefix = struct.pack("<I", int(draw.choice([0, 1, 2**31, 2**32 - 1])))
        rest = prefix + rest[4 : draw.integers(4, len(rest))]
    length = str(len(text)) if draw.random() < 0.7 else str(draw.choice([-1, 0, 7, 10**9]))
    return Hostile("POST", "/v2/models/depth/infer", text + rest, {**headers, LENGTH: length})


def _hostile_image(draw: np.random.Generator) -> Hostile:
    body, headers = binary_request(hostile_image(draw))
    return Hostile("POST", "/v2/models/seg/infer", body, headers)


def _odd_path(draw: np.random.Generator) -> Hostile:
    name, version = (_NAMES[i] for i in draw.integers(len(_NAMES), size=2))
    paths = [
        f"/v2/models/{name}/infer",
        f"/v2/models/{name}/versions/{version}/infer",
        f"/v1/models/{name}:predict",
        f"/v1/models/{name}:explain",
        f"/v2/repository/models/{name}/load",
        f"/playground/{name}",
        f"/v2/models/{name}/lineage",
        f"/{name}",
    ]
    path = paths[draw.integers(len(paths))].replace("é", "%C3%A9").replace(" ", "%20")
    method = ["POST", "GET", "PUT", "DELETE", "PATCH"][draw.integers(5)]
    headers = {f"X-{n}": "v" * 50 for n in range(draw.choice([0, 0, 60]))}
    return Hostile(method, path, b"{}", headers)


def _v1(draw: np.random.Generator) -> Hostile:
    image = {"image_bytes": {"b64": base64.b64encode(hostile_image(draw)).decode()}}
    request: Any = {"instances": [image], "labels": ["a"], "parameters": {"output": "png"}}
    for _ in range(draw.integers(0, 3)):
        request = _changed(request, draw)
    return Hostile("POST", "/v1/models/seg:predict", json.dumps(request).encode(), {})


def _picture(draw: np.random.Generator) -> Hostile:
    queries = ["output=png", "output=x", "top_k=9", "labels=,,", "x=1", "deadline_milliseconds=-1"]
    query = queries[draw.integers(len(queries))]
    return Hostile(
        "POST", f"/v2/models/seg/infer?{query}", hostile_image(draw), {"Content-Type": "image/png"}
    )

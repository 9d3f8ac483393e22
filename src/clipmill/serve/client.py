"""Client of a server: the standard library, NumPy and Pillow only, or curl.

Shapes: H W the image's height and width.
"""

import base64
import io
import json
import shlex
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import ConfigError, ServerError
from clipmill.images import upright
from clipmill.serve.protocol.png import VALUES_PER_METER
from clipmill.serve.protocol.rle import decode_rle
from clipmill.tasks.visualization import (
    SCORE_THRESHOLD,
    class_palette,
    depth_colors,
    draw_detections,
    encode_png,
)

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_TYPES: Final = {"UINT8": "<u1", "FP16": "<f2", "FP32": "<f4", "INT64": "<i8"}
_SHOWN_BYTES: Final = 300
_OVERLAY_ALPHA: Final = 0.6
_NUM_LABELS: Final = 10


Images = Sequence[NDArray[np.uint8] | bytes]
"""Pixels (H, W, 3), or encoded files."""


class Client:
    """A server, over REST with binary tensors.

    Example:
        >>> client = clipmill.Client(url)
        >>> client.models()
        ['segmentation']
        >>> (classes,) = client.dense("segmentation", [Path("image.jpg").read_bytes()])
        >>> classes.shape
        (64, 64)
    """

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        """``url`` is the server's address, without a path."""
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    def models(self) -> list[str]:
        """Return the names of the served models; errors as :meth:`infer`'s."""
        return list(json.loads(self._send("/v2/models")[0])["models"])

    def metadata(self, model: str, *, version: str = "") -> dict[str, Any]:
        """Return inputs, outputs, classes, palette, units, digest; errors as :meth:`infer`'s."""
        outputs: dict[str, Any] = json.loads(self._send(_path(model, version))[0])
        return outputs

    def infer(
        self,
        model: str,
        *,
        images: Images = (),
        texts: Sequence[str] = (),
        labels: Sequence[str] = (),
        output: str = "raw",
        version: str = "",
        parameters: Mapping[str, str | float] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """Return output arrays by name; those of BYTES hold ``bytes``.

        Raises:
            ServerError: no server answers, or the status isn't 200.
        """
        inputs = {"image": _encoded(images), "text": _utf8(texts), "labels": _utf8(labels)}
        body, headers = _encode_request(
            [_bytes_input(name, files) for name, files in inputs.items() if files],
            {"output": output, **parameters},
        )
        data, length = self._send(f"{_path(model, version)}/infer", body, headers)
        return read_outputs(data, length)

    def dense(
        self, model: str, images: Images, *, output: str = "raw", version: str = ""
    ) -> list[NDArray[Any]]:
        """Return an output (H, W) per image, in meters or class ids; errors as :meth:`infer`'s."""
        outputs = self.infer(model, images=images, output=output, version=version)
        (name,) = outputs.keys() - {"sizes"}
        if output == "png":
            return [_from_png(data) for data in outputs[name]]
        if "sizes" not in outputs:
            return list(outputs[name])
        ends = np.cumsum(outputs["sizes"].prod(axis=1))[:-1]
        parts = np.split(outputs[name], ends)
        return [part.reshape(size) for part, size in zip(parts, outputs["sizes"], strict=True)]

    def detect(
        self, model: str, images: Images, *, threshold: float = 0.0, top_k: int = 0
    ) -> list[dict[str, NDArray[Any]]]:
        """Return each image's objects, best first: boxes, scores, labels, masks (N, H, W).

        An image without objects has masks (0, 0, 0); errors as :meth:`infer`'s.
        """
        parameters = {"threshold": threshold, "top_k": top_k}
        outputs = self.infer(model, images=images, output="rle", parameters=parameters)
        ends = np.cumsum(outputs.pop("counts"))[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        each = [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(images))]
        return [{**one, "masks": _from_rle(one["masks"])} for one in each]

    def _send(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, int]:
        address = self.url + path
        request = urllib.request.Request(address, body, dict(headers or {}))  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as response:  # noqa: S310
                http_response = cast("HTTPResponse", response)
                return http_response.read(), int(http_response.headers.get(_HEADER_LENGTH, 0))
        except urllib.error.HTTPError as error:
            text = error.read(_SHOWN_BYTES).decode("utf-8", "replace")
            raise _server_error(address, f"answered {error.code}: {text}") from error
        except (OSError, HTTPException) as error:
            raise _server_error(address, f"can't be queried: {error}") from error


def query(
    url: str, model: str, image_HW3: NDArray[np.uint8], *, timeout_seconds: float = 60.0
) -> NDArray[Any]:
    """Return the model's output (H, W) for an RGB image, sent as pixels.

    Raises:
        ServerError: no server answers, or the status isn't 200.
    """
    body, headers = pixels_request(image_HW3)
    client = Client(url, timeout_seconds=timeout_seconds)
    data, length = client._send(f"{_path(model)}/infer", body, headers)  # noqa: SLF001  # this file
    output_HW: NDArray[Any] = read_answer(data, length)[0]
    return output_HW


def binary_request(image: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a V2 body that carries an encoded image, and its HTTP headers."""
    return _encode_request([_bytes_input("image", [image])])


def pixels_request(image_HW3: NDArray[np.uint8]) -> tuple[bytes, dict[str, str]]:
    """Return a V2 body that carries an RGB image's pixels, and its HTTP headers."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(image_HW3.shape)}
    return _encode_request([(tensor, image_HW3.tobytes())])


def read_answer(body: bytes, header_length: int) -> NDArray[Any]:
    """Return the array (n, H, W) of a binary V2 response with one output.

    ``header_length`` is its Inference-Header-Content-Length; the array is what follows it.
    """
    (array,) = read_outputs(body, header_length).values()
    return array


def read_outputs(body: bytes, header_length: int) -> dict[str, NDArray[Any]]:
    """Return all arrays of a binary V2 response by name; those of BYTES hold ``bytes``."""
    arrays: dict[str, NDArray[Any]] = {}
    position = header_length
    for output in json.loads(body[:header_length])["outputs"]:
        data = body[position : position + output["parameters"]["binary_data_size"]]
        position += len(data)
        if output["datatype"] == "BYTES":
            array = np.empty(prod(output["shape"]), object)
            array[:] = list(_byte_strings(data))
        else:
            array = np.frombuffer(data, _TYPES[output["datatype"]])
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays


def curl_command(
    url: str, model: str, *, body_path: Path, header_length: int, output_path: Path
) -> str:
    """Return a shell line that posts the body of ``binary_request`` and writes the response's.

    It prints the response's headers. In the file the tensor comes last: ``tail -c`` cuts it out.
    """
    argv = ["curl", "--silent", "--show-error", "--dump-header", "-"]
    argv += ["--header", "Content-Type: application/octet-stream"]
    argv += ["--header", f"{_HEADER_LENGTH}: {header_length}"]
    argv += ["--data-binary", f"@{body_path}", "--output", str(output_path)]
    return shlex.join([*argv, f"{url}/v2/models/{model}/infer"])


def v1_request(image: bytes) -> bytes:
    """Return a V1 body, plain JSON, that carries an encoded image."""
    text = base64.b64encode(image).decode("ascii")
    return json.dumps({"instances": [{"image_bytes": {"b64": text}}]}).encode()


def _path(model: str, version: str = "") -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _encoded(images: Images) -> list[bytes]:
    return [image if isinstance(image, bytes) else encode_png(image) for image in images]


def _utf8(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _bytes_input(name: str, values: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
    return tensor, b"".join(struct.pack("<I", len(value)) + value for value in values)


def _byte_strings(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        yield data[position + 4 : position + 4 + length]
        position += 4 + length


def _from_png(data: bytes) -> NDArray[Any]:
    """Return class ids, or meters."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        values_HW = np.asarray(image)
        scale = float(image.info.get(VALUES_PER_METER, 1000))
    return values_HW if image.mode == "P" else values_HW.astype(np.float32) / scale


def _from_rle(files: NDArray[Any]) -> NDArray[np.uint8]:
    if not len(files):
        return np.zeros((0, 0, 0), np.uint8)
    return np.stack([decode_rle(json.loads(file)) for file in files])


def _encode_request(
    inputs: Sequence[tuple[dict[str, Any], bytes]],
    parameters: Mapping[str, str | float] = MappingProxyType({}),
) -> tuple[bytes, dict[str, str]]:
    described = [
        {**tensor, "parameters": {"binary_data_size": len(data)}} for tensor, data in inputs
    ]
    request = {"inputs": described, "parameters": {"binary_data_output": True, **parameters}}
    header = json.dumps(request).encode()
    return header + b"".join(data for _, data in inputs), {
        "Content-Type": "application/octet-stream",
        _HEADER_LENGTH: str(len(header)),
    }


def _server_error(address: str, what: str) -> ServerError:
    return ServerError(
        f"{address} {what}",
        expected="a ready server, the name of a model it serves, an image within its limits",
        action="see the server's log and its /v2/models",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """A model's prediction for an image, as text and drawn."""

    model: str
    """Name of the model."""
    lines: tuple[str, ...]
    """Lines of text: shares of classes, range of depth, objects, or labels with probabilities."""
    overlay_png: bytes
    """Overlay on the image; empty where there is nothing to draw."""


def predict_image(
    url: str, image: bytes, *, model: str = "", labels: tuple[str, ...] = ()
) -> QueryResult:
    """Return the prediction of the model, or of the only one served, for an encoded image.

    Raises:
        ConfigError: several models are served and none was named, or a CLIP got no labels.
        ServerError: no server answers, or the status isn't 200.
    """
    client = Client(url)
    name = model or _only_model(client.models(), url)
    about = client.metadata(name)["parameters"]
    if about["task"] == "clip":
        return _predict_zero_shot(client, name, image, labels)
    if about["task"] == "classification":
        return _predict_classes(client, name, image, len(about["classes"]))
    if about["task"] == "detection":
        return _predict_objects(client, name, image, tuple(about["classes"]))
    (output_HW,) = client.dense(name, [image])
    if about["classes"]:
        lines, colors_HW3 = _describe_classes(output_HW, about["classes"])
    else:
        lines, colors_HW3 = _describe_depth(output_HW)
    return QueryResult(model=name, lines=lines, overlay_png=_overlay(image, colors_HW3))


def _only_model(names: list[str], url: str) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"{url} serves {', '.join(names)}",
            expected="the name of one of them",
            action="give it with --model",
        )
    return names[0]


def _predict_zero_shot(
    client: Client, model: str, image: bytes, labels: tuple[str, ...]
) -> QueryResult:
    if not labels:
        raise ConfigError(
            f"{model!r} is a CLIP, and no labels were given",
            expected="labels to choose from",
            action="give each with --label",
        )
    outputs = client.infer(
        model, images=[image], labels=labels, parameters={"top_k": min(_NUM_LABELS, len(labels))}
    )
    return _top_k_result(model, outputs)


def _predict_classes(client: Client, model: str, image: bytes, num_classes: int) -> QueryResult:
    parameters = {"top_k": min(_NUM_LABELS, num_classes)}
    return _top_k_result(model, client.infer(model, images=[image], parameters=parameters))


def _top_k_result(model: str, outputs: dict[str, NDArray[Any]]) -> QueryResult:
    best = zip(outputs["top_labels"][0], outputs["top_probabilities"][0], strict=True)
    lines = tuple(f"{share:7.1%}  {label.decode()}" for label, share in best)
    return QueryResult(model=model, lines=lines, overlay_png=b"")


def _predict_objects(
    client: Client, model: str, image: bytes, classes: tuple[str, ...]
) -> QueryResult:
    (outputs,) = client.detect(model, [image], threshold=SCORE_THRESHOLD)
    lines = tuple(
        f"{score:7.1%}  {classes[label]} at {', '.join(f'{side:.0f}' for side in box)}"
        for score, label, box in zip(
            outputs["scores"], outputs["labels"], outputs["boxes"], strict=True
        )
    )
    drawn_HW3 = draw_detections(outputs, _decode_rgb(image), classes)
    return QueryResult(model=model, lines=lines, overlay_png=encode_png(drawn_HW3))


def _describe_classes(
    classes_HW: NDArray[Any], names: list[str]
) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    ids, counts = np.unique(classes_HW, return_counts=True)
    order = np.argsort(-counts)
    lines = tuple(
        f"{counts[i] / classes_HW.size:7.1%}  "
        + (names[ids[i]] if ids[i] < len(names) else f"class {ids[i]}")
        for i in order
    )
    return lines, class_palette()[classes_HW]


def _describe_depth(depth_HW: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    near, far = float(depth_HW.min()), float(depth_HW.max())
    lines = (
        f"nearest  {near:.2f} m",
        f"farthest {far:.2f} m",
        f"median   {np.median(depth_HW):.2f} m",
    )
    return lines, depth_colors(depth_HW, max(far, 1e-6))


def _overlay(image: bytes, colors_HW3: NDArray[np.uint8]) -> bytes:
    mixed_HW3 = (1 - _OVERLAY_ALPHA) * _decode_rgb(image) + _OVERLAY_ALPHA * colors_HW3
    return encode_png(np.rint(mixed_HW3).astype(np.uint8))


def _decode_rgb(image: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(upright(opened).convert("RGB"))

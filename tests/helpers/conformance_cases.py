"""Cases of the Open Inference Protocol, and the clients that each must work with.

``python -m helpers.conformance_cases``, in the folder ``tests``, prints the table of
docs/serving.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.tasks.visualization import encode_png

CLIENTS: Final = {
    "rest_json": "REST, JSON",
    "rest_binary": "REST, binary tensors",
    "grpc": "gRPC, raw",
    "grpc_typed": "gRPC, typed contents",
    "kserve_rest": "KServe REST",
    "kserve_grpc": "KServe gRPC",
    "triton_http": "Triton HTTP",
    "triton_grpc": "Triton gRPC",
}
"""Headings of the table by client."""

_GRPC: Final = frozenset({"grpc", "grpc_typed", "kserve_grpc", "triton_grpc"})
_KSERVE: Final = frozenset({"kserve_rest", "kserve_grpc"})


@dataclass(frozen=True)
class Answer:
    """A response of inference."""

    tensors: dict[str, NDArray[Any]]
    id: str
    version: str


@dataclass(frozen=True)
class Refusal:
    """An error, by HTTP status or gRPC code."""

    code: str
    message: str


Result = Answer | Refusal | bool | list[str] | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request and what must come of it."""

    name: str
    """The table's row."""
    call: str = "infer"
    model: str = ""
    version: str = ""
    id: str = "case-7"
    inputs: Mapping[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, bool] = field(default_factory=dict)
    """Requested outputs, with their ``binary_data``."""
    names: tuple[str, ...] = ()
    """Outputs of the answer, in order."""
    codes: tuple[str, str] | None = None
    """HTTP status and gRPC code of a refusal."""
    expected: Any = None
    """Result of a call other than inference."""
    unable: frozenset[str] = frozenset()
    """Clients that can't send it or read the answer, or whose protocol has no such thing."""


def _noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(11).integers(0, 256, shape, np.uint8)


PICTURE: Final = _noise(48, 64, 3)
SMALLER: Final = _noise(40, 40, 3)


def _bytes(*values: bytes) -> tuple[str, NDArray[Any]]:
    array = np.empty(len(values), object)
    array[:] = values
    return "BYTES", array


_UINT8 = {"image": ("UINT8", PICTURE)}
_FILE = {"image": _bytes(encode_png(PICTURE))}
_LABELS = {"image": ("UINT8", PICTURE), "labels": _bytes(b"a cube", b"a ball", b"floor")}
_OBJECTS = ("boxes", "counts", "scores", "labels", "masks")

CASES: Final = (
    Case(name="UINT8 pixels", model="seg", inputs=_UINT8, names=("classes",)),
    Case(
        name="a batch of UINT8 pixels",
        model="seg",
        inputs={"image": ("UINT8", np.stack([PICTURE, PICTURE[::-1]]))},
        names=("classes",),
    ),
    Case(
        name="FP32 pixels",
        model="depth",
        inputs={"image": ("FP32", (PICTURE / 255).astype(np.float32))},
        names=("depth_meters",),
    ),
    Case(
        name="FP16 pixels",
        model="depth",
        inputs={"image": ("FP16", (PICTURE / 255).astype(np.float16))},
        names=("depth_meters",),
        unable=frozenset({"grpc_typed"}),
    ),
    Case(name="an encoded image", model="seg", inputs=_FILE, names=("classes",)),
    Case(
        name="encoded images of two sizes",
        model="seg",
        inputs={"image": _bytes(encode_png(PICTURE), encode_png(SMALLER))},
        names=("classes", "sizes"),
    ),
    Case(
        name="an image and texts",
        model="clip",
        inputs={"image": ("UINT8", PICTURE), "text": _bytes(b"a red cube", "Stühle".encode())},
        names=("image_embedding", "text_embedding"),
    ),
    Case(
        name="labels for an image",
        model="clip",
        inputs=_LABELS,
        parameters={"top_k": 2},
        names=("top_labels", "top_probabilities"),
    ),
    Case(name="all outputs of objects", model="detection", inputs=_UINT8, names=_OBJECTS),
    Case(
        name="`output=float16`",
        model="depth",
        inputs=_UINT8,
        parameters={"output": "float16"},
        names=("depth_meters",),
    ),
    Case(
        name="`output=png`",
        model="depth",
        inputs=_UINT8,
        parameters={"output": "png"},
        names=("depth_meters",),
        unable=frozenset({"kserve_rest"}),
    ),
    Case(
        name="`output=rle`",
        model="detection",
        inputs=_UINT8,
        parameters={"output": "rle", "top_k": 3},
        names=_OBJECTS,
    ),
    Case(
        name="a fraction as parameter",
        model="detection",
        inputs=_UINT8,
        parameters={"threshold": 0.4},
        names=_OBJECTS,
        unable=frozenset({"kserve_grpc"}),
    ),
    Case(
        name="a fraction as text",
        model="detection",
        inputs=_UINT8,
        parameters={"threshold": "0.4"},
        names=_OBJECTS,
        unable=frozenset(CLIENTS) - _GRPC,
    ),
    Case(
        name="requested outputs, in their order",
        model="detection",
        inputs=_UINT8,
        outputs={"scores": True, "boxes": True},
        names=("scores", "boxes"),
    ),
    Case(
        name="a requested output that isn't a default",
        model="classification",
        inputs=_UINT8,
        outputs={"top_labels": True, "probabilities": True},
        names=("top_labels", "probabilities"),
    ),
    Case(
        name="`binary_data` of each output",
        model="classification",
        inputs=_UINT8,
        parameters={"top_k": 2},
        outputs={"top_labels": False, "top_probabilities": True},
        names=("top_labels", "top_probabilities"),
        unable=_GRPC,
    ),
    Case(
        name="a named version",
        model="seg",
        version="1",
        inputs=_UINT8,
        names=("classes",),
        unable=frozenset({"kserve_rest"}),
    ),
    Case(
        name="`priority`, `timeout`, `sequence_id`",
        model="detection",
        inputs=_UINT8,
        parameters={
            "priority": 1,
            "timeout": 20_000_000,
            "sequence_id": 9,
            "sequence_start": True,
            "sequence_end": False,
        },
        names=_OBJECTS,
    ),
    Case(
        name="a passed deadline",
        model="seg",
        inputs=_UINT8,
        parameters={"timeout": 1},
        codes=("503", "DEADLINE_EXCEEDED"),
    ),
    Case(name="an unknown model", model="none", inputs=_UINT8, codes=("404", "NOT_FOUND")),
    Case(
        name="an unknown version",
        model="seg",
        version="9",
        inputs=_UINT8,
        codes=("404", "NOT_FOUND"),
        unable=frozenset({"kserve_rest"}),
    ),
    Case(
        name="an unknown output",
        model="seg",
        inputs=_UINT8,
        outputs={"depth_meters": True},
        codes=("400", "INVALID_ARGUMENT"),
    ),
    Case(
        name="an output whose input is missing",
        model="clip",
        inputs=_UINT8,
        outputs={"text_embedding": True},
        codes=("400", "INVALID_ARGUMENT"),
    ),
    Case(
        name="an unknown parameter",
        model="seg",
        inputs=_UINT8,
        parameters={"topk": 2},
        codes=("400", "INVALID_ARGUMENT"),
    ),
    Case(
        name="an unknown parameter, a fraction",
        model="seg",
        inputs=_UINT8,
        parameters={"score": 0.5},
        codes=("400", "INVALID_ARGUMENT"),
        unable=frozenset({"kserve_grpc"}),
    ),
    Case(
        name="another datatype",
        model="seg",
        inputs={"image": ("INT64", PICTURE.astype(np.int64))},
        codes=("400", "INVALID_ARGUMENT"),
    ),
    Case(
        name="pixels that aren't numbers",
        model="seg",
        inputs={"image": ("FP32", np.full((4, 4, 3), np.nan, np.float32))},
        codes=("400", "INVALID_ARGUMENT"),
    ),
    Case(name="liveness", call="live", expected=True),
    Case(name="readiness", call="ready", expected=True),
    Case(
        name="the server's metadata",
        call="extensions",
        expected=["binary_tensor_data"],
        unable=_KSERVE,
    ),
    Case(name="a model's readiness", call="model_ready", model="seg", expected=True),
    Case(
        name="a version's readiness",
        call="model_ready",
        model="seg",
        version="1",
        expected=True,
        unable=_KSERVE,
    ),
    Case(
        name="readiness of an unknown version",
        call="model_ready",
        model="seg",
        version="9",
        expected=False,
        unable=_KSERVE,
    ),
    Case(
        name="a model's metadata",
        call="metadata",
        model="seg",
        expected={
            "name": "seg",
            "versions": ["1", "2"],
            "platform": "clipmill",
            "inputs": [("image", "BYTES", [-1])],
            "outputs": [("classes", "UINT8", [-1, -1, -1]), ("sizes", "INT64", [-1, 2])],
        },
        unable=_KSERVE,
    ),
    *(
        Case(
            name=f"{call} of a model",
            call=call,
            model="seg",
            codes=("501", "UNIMPLEMENTED"),
            unable=_KSERVE,
        )
        for call in ("load", "unload")
    ),
)


def described(metadata: Any) -> dict[str, Any]:
    """Return what REST's and gRPC's metadata have in common."""
    get = metadata.get if isinstance(metadata, dict) else lambda name: getattr(metadata, name)
    return {
        "name": get("name"),
        "versions": list(get("versions")),
        "platform": get("platform"),
        **{
            kind: [
                (t["name"], t["datatype"], list(map(int, t["shape"])))
                if isinstance(t, dict)
                else (t.name, t.datatype, list(t.shape))
                for t in get(kind)
            ]
            for kind in ("inputs", "outputs")
        },
    }


def code(case: Case, client: str) -> str:
    """Return the code with which a case is refused."""
    assert case.codes is not None
    return case.codes[client in _GRPC]


def table() -> str:
    """Return the cases by client as Markdown."""
    lines = [
        f"| case | {' | '.join(CLIENTS.values())} |",
        f"|---|{'---|' * len(CLIENTS)}",
    ]
    for case in CASES:
        cells = [
            "n/a" if client in case.unable else code(case, client) if case.codes else "✓"
            for client in CLIENTS
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

"""What DataCompDR's release stores beside a pair, as rows of layers.

Keys as in the dataset cards of apple/DataCompDR-12M and -1B: ``syn.json`` (``syn_text``: synthetic
captions), ``paug.json`` (``param_aug``: parameters of stored augmentations), ``npz``
(``image_emb``: a row an augmentation; ``text_emb``: a row a caption, the real ones first).
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clipmill.errors import BadSampleError, SourceError

# What readers of JSON and npz raise for files that are neither.
_BROKEN = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
_KINDS = {"syn.json": "captions", "paug.json": "augmentation", "npz": "teacher"}


def brought_layers(keys: Iterable[str], name: str) -> tuple[str, ...]:
    """The layers that a sample with these keys brings; raises SourceError for pickled ones."""
    if "pth.gz" in keys:
        raise SourceError(
            "the tars hold embeddings as pth.gz, which is pickled Python",
            expected="embeddings as npz, or none",
            action="convert them to npz, or leave all such keys out with `?layers=`",
        )
    return tuple(sorted(f"{kind}/{name}" for key, kind in _KINDS.items() if key in keys))


def layer_rows(
    layers: Sequence[str],
    name: str,
    found: set[str],
    read: Callable[[str], bytes],
    real: Sequence[bytes | str],
) -> Mapping[str, Mapping[str, Any]]:
    """A sample's row in each of the layers; ``real`` are its real captions.

    Captions: ``captions`` (list), ``fallback`` (whether the real caption stands in for none).
    Augmentation: ``parameters`` (JSON). Teacher: ``image_embeddings`` and ``text_embeddings``
    (lists of float16 vectors, real captions first), ``num_real_captions``. What a sample lacks
    is null. Raises BadSampleError (``broken-record``) where a value isn't of this shape.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    try:
        if f"captions/{name}" in layers:
            texts = json.loads(read("syn.json"))["syn_text"] if "syn.json" in found else []
            texts = [text for text in texts if text.encode().strip()]
            rows[f"captions/{name}"] = {"captions": texts, "fallback": not texts}
        if f"augmentation/{name}" in layers:
            value = json.loads(read("paug.json"))["param_aug"] if "paug.json" in found else None
            # Some releases keep the parameters as text within the JSON.
            text = value if isinstance(value, str | None) else json.dumps(value)
            rows[f"augmentation/{name}"] = {"parameters": text}
        if f"teacher/{name}" in layers:
            rows[f"teacher/{name}"] = _teacher(read("npz") if "npz" in found else None, len(real))
    except _BROKEN as error:
        raise BadSampleError("broken-record", f"{type(error).__name__}: {error}") from error
    return rows


def _teacher(data: bytes | None, num_real: int) -> dict[str, Any]:
    if data is None:
        return {"image_embeddings": None, "text_embeddings": None, "num_real_captions": num_real}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        image_AD, text_CD = (arrays[key].astype(np.float16) for key in ("image_emb", "text_emb"))
    if image_AD.ndim != 2 or text_CD.ndim != 2:
        raise ValueError(f"embeddings of shapes {image_AD.shape} and {text_CD.shape}")
    return {
        "image_embeddings": list(image_AD),
        "text_embeddings": list(text_CD),
        "num_real_captions": num_real,
    }

"""What DataCompDR's release stores beside a pair, as rows of layers.

Keys as in the dataset cards of apple/DataCompDR-12M and -1B: ``syn.json`` (``syn_text``: synthetic
captions), ``paug.json`` (``param_aug``: parameters of stored augmentations), ``npz``
(``image_emb``: a row an augmentation; ``text_emb``: a row a caption, the real ones first).
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import BadSampleError, BadSampleReason, SourceError

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
_LAYERS = {"syn.json": "captions", "npz": "teacher"}


@dataclass(frozen=True, slots=True)
class DataCompDRLayers:
    """Which layers the samples of a source bring, as its first sample shows."""

    name: str
    """The part of the layers' names after their kind."""
    layers: tuple[str, ...]
    width: int
    """Length of an embedding; 0 without a teacher layer."""


def detect_reinforcement(
    keys: Container[str], read: Callable[[str], bytes], name: str
) -> DataCompDRLayers:
    """See what a sample with these keys brings; raises SourceError for what can't be read."""
    if "pth.gz" in keys:
        raise SourceError(
            "the tars hold embeddings as pth.gz, which is pickled Python",
            expected="embeddings as npz, or none",
            action="convert them to npz, or leave all such keys out with `?layers=`",
        )
    layers = tuple(sorted(f"{kind}/{name}" for key, kind in _LAYERS.items() if key in keys))
    width = 0
    if "npz" in keys:
        try:
            width = _embeddings(read("npz"))[0].shape[1]
        except _BROKEN as error:
            raise SourceError(
                f"the first sample's embeddings can't be read: {error}",
                expected="npz with image_emb and text_emb, a row an embedding",
                action="mend the first tar, or leave all such keys out with `?layers=`",
            ) from error
    return DataCompDRLayers(name, layers, width)


def layer_rows(
    kind: DataCompDRLayers,
    keys: Container[str],
    read: Callable[[str], bytes],
    num_real: int,
) -> Mapping[str, Mapping[str, Any]]:
    """A sample's row in each of the layers; ``num_real`` of its embeddings are of real captions.

    Captions: ``captions``, ``fallback`` (whether the real caption is to stand in for none).
    Teacher: ``image``, an embedding an augmentation; ``text``, one for the real caption and one
    for each of ``captions``; ``augmentation``, the release's own numbers of each: top, left,
    height and width of the crop in pixels, then number and strength of each operation. All three
    are null where the sample lacks one. Raises BadSampleError (``damaged_record``) where a value
    isn't of this shape.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    try:
        texts = json.loads(read("syn.json"))["syn_text"] if "syn.json" in keys else []
        kept = [i for i, text in enumerate(texts) if text.encode().strip()]
        if f"captions/{kind.name}" in kind.layers:
            rows[f"captions/{kind.name}"] = {
                "captions": [texts[i] for i in kept],
                "fallback": not kept,
            }
        if f"teacher/{kind.name}" in kind.layers:
            row: Mapping[str, Any] = {"image": None, "text": None, "augmentation": None}
            if "npz" in keys and "paug.json" in keys:
                of_captions = [num_real + i for i in kept] or [0]
                row = _teacher(read, num_real + len(texts), [0, *of_captions], kind.width)
            rows[f"teacher/{kind.name}"] = row
    except _BROKEN as error:
        raise BadSampleError(
            BadSampleReason.DAMAGED_RECORD, f"{type(error).__name__}: {error}"
        ) from error
    return rows


def _teacher(
    read: Callable[[str], bytes], num_texts: int, chosen: list[int], width: int
) -> Mapping[str, Any]:
    image_AE, text_CE = _embeddings(read("npz"))
    parameters = json.loads(read("paug.json"))["param_aug"]
    if isinstance(parameters, str):  # as the release has it: JSON within JSON
        parameters = json.loads(parameters)
    numbers = [
        [float(number) for part in (crop, *operations) for number in part]
        for crop, operations in parameters
    ]
    shapes = image_AE.shape, text_CE.shape
    if shapes != ((len(numbers), width), (num_texts, width)):
        raise ValueError(f"embeddings of shapes {shapes} for {len(numbers)} augmentations")
    return {"image": image_AE, "text": text_CE[chosen], "augmentation": numbers}


def _embeddings(data: bytes) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        image_AE, text_CE = (arrays[key].astype(np.float16) for key in ("image_emb", "text_emb"))
    if image_AE.ndim != 2 or text_CE.ndim != 2:
        raise ValueError(f"embeddings of shapes {image_AE.shape} and {text_CE.shape}")
    return image_AE, text_CE

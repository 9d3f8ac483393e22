"""DataCompDR's reinforcements of a sample: synthetic captions, embeddings, stored augmentations.

Members as in the dataset cards of apple/DataCompDR-12M, -12M-bf16 and -1B: ``syn.json``
(``syn_text``: synthetic captions); ``paug.json`` (``param_aug``: parameters of stored
augmentations, a crop and the operations of RandAugment, null where those were skipped); ``npz``, or
``pth.gz`` of PyTorch (``image_emb``: a row per augmentation; ``text_emb``: a row per caption, the
real ones first).
"""

import gzip
import io
import itertools
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.data.sources.base import original_size
from clipmill.data.transforms.torchvision_replay import (
    CROP_NUMBERS,
    OPERATIONS,
    TORCHVISION_AUGMENTATION,
    Size,
    fit_crop,
)
from clipmill.errors import BadSampleError, BadSampleReason, MissingExtraError, SourceError

DEFAULT_NAME: Final = "datacompdr"
"""The part of the layers' names after their kind."""

MAX_INSPECTED: Final = 100
"""Samples that are looked at to see what a source brings: the first ones may lack a member."""

# What readers of JSON, npz and pth raise for files that are neither.
_BROKEN = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)

# 30 augmentations of 1,536 values in bfloat16 are 92 kB; more is an attempt to exhaust memory.
_MAX_PTH_BYTES = 1 << 26

Read = Callable[[str], bytes]
"""Reads a sample's member by what follows the key in its name."""


@dataclass(frozen=True, slots=True)
class ReinforcedLayers:
    """The layers that a source's samples bring."""

    name: str
    """The part of the layers' names after their kind."""
    layers: tuple[str, ...]
    """Captions before teacher."""
    width: int
    """Length of an embedding; 0 without a teacher layer."""


def inspect_samples(
    samples: Iterable[tuple[Container[str], Read]], name: str
) -> ReinforcedLayers | None:
    """Return the layers that the first samples bring together, None for no samples.

    Raises SourceError if all of their embeddings are damaged.
    """
    kinds: set[str] = set()
    width, error, is_empty = 0, None, True
    for keys, read in itertools.islice(samples, MAX_INSPECTED):
        is_empty = False
        if "syn.json" in keys:
            kinds.add("captions")
        if _has_embeddings(keys):
            kinds.add("teacher")
            try:
                width = width or _embeddings(keys, read)[0].shape[1]
            except _BROKEN as broken:
                error = error or broken
        if width and "captions" in kinds:
            break
    if is_empty:
        return None
    if "teacher" in kinds and not width:
        raise SourceError(
            f"the embeddings of the first samples can't be read: {error}",
            expected="npz or pth.gz with image_emb and text_emb, a row an embedding",
            action="download the first tar again, or leave embeddings out with `?layers=`",
        ) from error
    return ReinforcedLayers(name, tuple(f"{kind}/{name}" for kind in sorted(kinds)), width)


def drawn_size(metadata: Mapping[str, str | int], stored: Size) -> Size:
    """Return the size of the image that augmentations were drawn on: the one before resizing."""
    original = original_size(metadata)
    if original is None or sorted(original) == sorted(stored):  # by EXIF, sides may be exchanged
        return stored
    return original


def layer_rows(
    layers: ReinforcedLayers,
    keys: Container[str],
    read: Read,
    *,
    num_real: int | None,
    drawn_on: Size,
    stored: Size,
) -> Mapping[str, Mapping[str, Any]]:
    """Return a sample's row in each of the layers.

    Captions: ``captions``, ``fallback`` (whether the real caption is to stand in for none).
    Teacher: ``image``, an embedding an augmentation; ``text``, one for the real caption and one
    for each of ``captions``; TORCHVISION_AUGMENTATION, the numbers of each augmentation. Embeddings
    of a sample without reinforcement have no rows.

    Args:
        layers: The layers.
        keys: The members that the sample has.
        read: Their reader.
        num_real: The number of real captions that were embedded; None to take all embeddings that
            are not of a synthetic caption for those of real ones.
        drawn_on: Size of the image that the augmentations were drawn on.
        stored: Size of the image as it's stored, before any EXIF turn.

    Raises:
        BadSampleError: ``damaged_record``, a value isn't of this shape.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    try:
        texts = _synthetic(read) if "syn.json" in keys else []
        kept = [i for i, text in enumerate(texts) if text.encode().strip()]
        if f"captions/{layers.name}" in layers.layers:
            rows[f"captions/{layers.name}"] = {
                "captions": [texts[i] for i in kept],
                "fallback": not kept,
            }
        if f"teacher/{layers.name}" in layers.layers:
            none = np.empty((0, layers.width), np.float16)
            row: Mapping[str, Any] = {"image": none, "text": none, TORCHVISION_AUGMENTATION: None}
            if _has_embeddings(keys) and "paug.json" in keys:
                image_AE, text_CE = _embeddings(keys, read)
                augmentations = [
                    fit_crop(numbers, drawn_on, stored) for numbers in _augmentations(read)
                ]
                real = len(text_CE) - len(texts) if num_real is None else num_real
                expected = (len(augmentations), layers.width), (real + len(texts), layers.width)
                if (image_AE.shape, text_CE.shape) != expected or real < 1 or not augmentations:
                    raise ValueError(
                        f"embeddings of shapes {image_AE.shape} and {text_CE.shape} for "
                        f"{len(augmentations)} augmentations, {real} real and {len(texts)} "
                        "synthetic captions"
                    )
                chosen = [0, *([real + i for i in kept] or [0])]
                row = {
                    "image": image_AE,
                    "text": text_CE[chosen],
                    TORCHVISION_AUGMENTATION: augmentations,
                }
            rows[f"teacher/{layers.name}"] = row
    except _BROKEN as error:
        raise BadSampleError(
            BadSampleReason.DAMAGED_RECORD, f"{type(error).__name__}: {error}"
        ) from error
    return rows


def resized_rows(
    rows: Mapping[str, Mapping[str, Any]], before: Size, after: Size
) -> Mapping[str, Mapping[str, Any]]:
    """Return a sample's rows for its image resized.

    Raises BadSampleError (``damaged_record``) if the image has another aspect.
    """
    resized = dict(rows)
    try:
        for layer, row in rows.items():
            if row.get(TORCHVISION_AUGMENTATION):
                fitted = [fit_crop(n, before, after) for n in row[TORCHVISION_AUGMENTATION]]
                resized[layer] = {**row, TORCHVISION_AUGMENTATION: fitted}
    except ValueError as error:
        raise BadSampleError(BadSampleReason.DAMAGED_RECORD, str(error)) from error
    return resized


def _has_embeddings(keys: Container[str]) -> bool:
    return "npz" in keys or "pth.gz" in keys


def _synthetic(read: Read) -> list[str]:
    texts = json.loads(read("syn.json"))["syn_text"]
    if not isinstance(texts, list):
        raise ValueError(f"syn_text is {type(texts).__name__}, not a list")  # noqa: TRY004  # counted
    return texts


def _augmentations(read: Read) -> list[list[float]]:
    """Return the numbers of each stored augmentation."""
    parameters = json.loads(read("paug.json"))["param_aug"]
    if isinstance(parameters, str):  # as the release has it: JSON within JSON
        parameters = json.loads(parameters)
    # RandAugment is null where it was skipped.
    return [_numbers(crop, operations or []) for crop, operations in parameters]


def _numbers(crop: Sequence[float], operations: Sequence[Sequence[float]]) -> list[float]:
    if len(crop) != CROP_NUMBERS or not all(type(number) is int for number in crop):
        raise ValueError(f"a crop of {crop}")
    for index, magnitude in operations:
        if not (type(index) is int and 0 <= index < len(OPERATIONS) and math.isfinite(magnitude)):
            raise ValueError(f"an operation {index} of magnitude {magnitude}")
    return [float(number) for part in (crop, *operations) for number in part]


def _embeddings(
    keys: Container[str], read: Read
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the embeddings (A, E) of augmentations and (C, E) of captions."""
    values = _load_npz(read("npz")) if "npz" in keys else _load_pth(read("pth.gz"))
    with np.errstate(over="ignore"):  # what is infinite then is refused
        image_AE, text_CE = (values[key].astype(np.float16) for key in ("image_emb", "text_emb"))
    if image_AE.ndim != 2 or text_CE.ndim != 2 or not image_AE.size:
        raise ValueError(f"embeddings of shapes {image_AE.shape} and {text_CE.shape}")
    if not (np.isfinite(image_AE).all() and np.isfinite(text_CE).all()):
        raise ValueError("embeddings that aren't finite")
    return image_AE, text_CE


def _load_npz(data: bytes) -> Mapping[str, NDArray[Any]]:
    if not data.startswith(b"PK"):  # which np.load would take for a pickle
        raise ValueError("an npz that is no zip file")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in ("image_emb", "text_emb")}


def _load_pth(data: bytes) -> Mapping[str, NDArray[Any]]:
    """Return the tensors that PyTorch saved; nothing but tensors is unpickled."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "the tars hold embeddings as pth.gz, which PyTorch reads",
            expected="PyTorch",
            action="pip install 'clipmill[model]', or leave embeddings out with `?layers=`",
        ) from error
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(_MAX_PTH_BYTES + 1)
    if len(content) > _MAX_PTH_BYTES:
        raise ValueError(f"more than {_MAX_PTH_BYTES} bytes of embeddings")
    values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {key: torch.as_tensor(values[key]).float().numpy() for key in ("image_emb", "text_emb")}

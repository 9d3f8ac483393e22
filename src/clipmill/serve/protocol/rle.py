"""COCO's compressed run lengths of a mask, as pycocotools writes and reads them.

pycocotools encodes a mask in 0.7 ms rather than 1.4, but is an extra of training (``train``), with
compiled code; the tests compare both.

Runs of 0 and 1 by turns down the columns; each from the fourth on as its difference to the one
two before, in groups of five bits (``rleToString`` of pycocotools' maskApi.c). Shapes: H W.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Rle(TypedDict):
    """A mask as COCO has it in results."""

    size: list[int]
    """Height and width."""
    counts: str
    """The run lengths."""


def encode_rle(mask_HW: NDArray[np.uint8]) -> Rle:
    """The run lengths of a mask of 0 and 1."""
    pixels = mask_HW.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = [0, 0] if pixels.size and pixels[0] else [0]  # the first run is one of 0
    runs = np.diff(np.concatenate([starts, changes, [pixels.size]])).tolist()
    text = bytearray()
    for index, run in enumerate(runs):
        left = run - runs[index - 2] if index > 2 else run
        is_more = True
        while is_more:
            group, left = left & 31, left >> 5
            is_more = left != (-1 if group & 16 else 0)
            text.append(48 + (group | (32 if is_more else 0)))
    return {"size": list(mask_HW.shape), "counts": text.decode("ascii")}


def decode_rle(rle: Rle) -> NDArray[np.uint8]:
    """The mask (H, W) of 0 and 1; the text must be one that :func:`encode_rle` could have made."""
    runs: list[int] = []
    value = shift = 0
    for byte in rle["counts"].encode("ascii"):
        group = byte - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    height, width = rle["size"]
    pixels = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
    return pixels.reshape(width, height).T

"""Large-scale jitter: an image and its objects, resized, cropped and mirrored together.

Simple Copy-Paste is a Strong Data Augmentation Method (Ghiasi et al. 2021, arXiv:2012.07177),
section 3: the picture is fitted to the canvas, then scaled at random, and cropped or filled up.

Shapes: S the canvas's side, M objects.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def large_scale_jitter(
    image_HW3: NDArray[Any],
    masks_MHW: NDArray[np.uint8],
    size: int,
    scale: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Image (S, S, 3) and masks (M, S, S), resized by the same factor and cut at the same place.

    ``scale`` is the lowest and highest factor, of the picture that just fits the canvas; what the
    picture doesn't cover, right and below, is black and holds nothing.
    """
    height, width = image_HW3.shape[:2]
    factor = size / max(height, width) * generator.uniform(*scale)
    scaled = (max(1, round(width * factor)), max(1, round(height * factor)))
    left, top = (int(generator.integers(0, max(0, side - size) + 1)) for side in scaled)
    visible = (min(size, scaled[0]), min(size, scaled[1]))
    across, down = width / scaled[0], height / scaled[1]
    window = (left * across, top * down, (left + visible[0]) * across, (top + visible[1]) * down)
    is_mirrored = generator.random() < 0.5
    canvas_SS3 = np.zeros((size, size, 3), np.uint8)
    canvas_SS3[: visible[1], : visible[0]] = _resized(
        image_HW3, visible, window, Image.Resampling.BILINEAR, is_mirrored
    )
    masks_MSS = np.zeros((len(masks_MHW), size, size), np.uint8)
    for mask_SS, mask_HW in zip(masks_MSS, masks_MHW, strict=True):
        mask_SS[: visible[1], : visible[0]] = _resized(
            mask_HW, visible, window, Image.Resampling.NEAREST, is_mirrored
        )
    return canvas_SS3, masks_MSS


def boxes_of(masks_MHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes (M, 4), x1 y1 x2 y2, around what each mask covers; all 0 for an empty one."""
    boxes_M4 = np.zeros((len(masks_MHW), 4), np.float32)
    for box, mask_HW in zip(boxes_M4, masks_MHW, strict=True):
        columns, rows = np.flatnonzero(mask_HW.any(0)), np.flatnonzero(mask_HW.any(1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes_M4


def _resized(
    array: NDArray[Any],
    size: tuple[int, int],
    window: tuple[float, float, float, float],
    how: Image.Resampling,
    is_mirrored: bool,
) -> NDArray[Any]:
    resized = np.asarray(Image.fromarray(array).resize(size, how, box=window))
    return resized[:, ::-1] if is_mirrored else resized

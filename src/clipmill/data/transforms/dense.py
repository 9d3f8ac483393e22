"""Augmentation of an image together with its labels: a dense map, or the masks of objects.

Shapes: H image height, W image width; dense labels are (H, W). S a canvas's side, M objects.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_CROP_ATTEMPTS = 10


def resize_pair(
    image_HW3: NDArray[Any], label_HW: NDArray[Any], factor: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both resized by ``factor``: the image bilinear, the label by its nearest pixel."""
    height, width = label_HW.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(image_HW3).resize(size, Image.Resampling.BILINEAR)
    label = Image.fromarray(label_HW).resize(size, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(label)


def factor_at_test(shape: tuple[int, ...], side: int) -> float:
    """Return the factor that resizes an image (H, W) as at test: its shorter side to ``side``."""
    return side / min(shape)


def center_crop_pair(
    image_HW3: NDArray[Any], label_HW: NDArray[Any], size: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as squares of side ``size``: resized to it by the shorter side, and its middle."""
    image_HW3, label_HW = resize_pair(image_HW3, label_HW, size / min(label_HW.shape))
    top, left = ((side - size) // 2 for side in label_HW.shape)
    window = (slice(top, top + size), slice(left, left + size))
    return image_HW3[window], label_HW[window]


def crop_pair(
    image_HW3: NDArray[Any],
    label_HW: NDArray[Any],
    size: int,
    generator: np.random.Generator,
    *,
    fill: float,
    cat_max_ratio: float = 1.0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A random square of side ``size``; beyond the edge, black and label ``fill``.

    With ``cat_max_ratio`` below 1 it is drawn up to ten times more, until it holds two labels
    other than ``fill``, none of them on a larger share of their pixels (mmseg's RandomCrop).
    """
    missing = [max(0, size - side) for side in label_HW.shape]
    if any(missing):
        below, right = missing
        image_HW3 = np.pad(image_HW3, ((0, below), (0, right), (0, 0)))
        label_HW = np.pad(label_HW, ((0, below), (0, right)), constant_values=fill)
    window = _random_window(label_HW.shape, size, generator)
    if cat_max_ratio < 1:
        for _ in range(_CROP_ATTEMPTS):
            values, counts = np.unique(label_HW[window], return_counts=True)
            counts = counts[values != fill]
            if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
                break
            window = _random_window(label_HW.shape, size, generator)
    return image_HW3[window], label_HW[window]


def _random_window(
    shape: tuple[int, ...], size: int, generator: np.random.Generator
) -> tuple[slice, slice]:
    top, left = (int(generator.integers(0, side - size + 1)) for side in shape)
    return slice(top, top + size), slice(left, left + size)


def flip_pair(
    image_HW3: NDArray[Any], label_HW: NDArray[Any], generator: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both mirrored left to right, half of the time."""
    if generator.random() < 0.5:
        return image_HW3[:, ::-1], label_HW[:, ::-1]
    return image_HW3, label_HW


def cutdepth(
    image_HW3: NDArray[Any],
    depth_HW: NDArray[Any],
    max_depth: float,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """Vertical CutDepth: a band of columns shows the depth in place of the image.

    From column a W, max((W - a W) b 0.75, 1) columns wide; a and b uniform in 0..1 (Ishii and
    Yamashita 2021, in the form of Xie et al. 2023).
    """
    width = depth_HW.shape[1]
    left = int(generator.random() * width)
    span = int(max((width - left) * generator.random() * 0.75, 1))
    band = slice(left, left + span)
    mixed = image_HW3.copy()
    shown = np.clip(depth_HW[:, band] / max_depth, 0, 1) * 255
    mixed[:, band] = shown[..., None].astype(np.uint8)
    return mixed


def photometric_distortion(
    image_HW3: NDArray[Any],
    generator: np.random.Generator,
    *,
    probability: float,
    brightness_contrast: float,
    gamma: tuple[float, float],
    hue: float,
    saturation: float,
    value: float,
) -> NDArray[Any]:
    """Change brightness and contrast, gamma, then hue and saturation, each with ``probability``.

    Limits are shares of each range, as in :class:`clipmill.tasks.config.PhotometricConfig`.
    """
    image = image_HW3.astype(np.float32) / 255
    if generator.random() < probability:
        limit = brightness_contrast
        contrast, brightness = 1 + generator.uniform(-limit, limit, 2)
        image = np.clip(image * contrast + (brightness - 1), 0, 1)
    if generator.random() < probability:
        image = image ** generator.uniform(*gamma)
    image_HW3 = np.rint(image * 255).astype(np.uint8)
    if generator.random() < probability:
        hsv = np.asarray(Image.fromarray(image_HW3).convert("HSV")).astype(np.int16)
        limits = np.array([hue, saturation, value]) * 255
        hsv += generator.uniform(-limits, limits).astype(np.int16)
        hsv[..., 0] %= 256
        hsv = np.clip(hsv, 0, 255).astype(np.uint8)
        image_HW3 = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return image_HW3


def large_scale_jitter(
    image_HW3: NDArray[Any],
    masks_MHW: NDArray[np.uint8],
    boxes_M4: NDArray[Any],
    size: int,
    scale: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.float32]]:
    """Image (S, S, 3), masks (M, S, S) and boxes (M, 4), resized and cut in the same way.

    A box is x1 y1 x2 y2, cut at the canvas; all 0 where nothing of it is left. ``scale`` is the
    lowest and highest factor, of the image that just fits the canvas; what the image doesn't
    cover, right and below, is black and holds nothing.
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
    ratios = np.array([scaled[0] / width, scaled[1] / height] * 2)
    moved_M4 = np.asarray(boxes_M4, np.float64).reshape(-1, 4) * ratios - [left, top, left, top]
    moved_M4 = moved_M4.clip(0, [*visible, *visible])
    if is_mirrored:
        moved_M4[:, [0, 2]] = visible[0] - moved_M4[:, [2, 0]]
    moved_M4[(moved_M4[:, 2] <= moved_M4[:, 0]) | (moved_M4[:, 3] <= moved_M4[:, 1])] = 0
    return canvas_SS3, masks_MSS, moved_M4.astype(np.float32)


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

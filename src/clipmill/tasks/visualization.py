"""Images of predictions: class maps, depth maps, detections, class probabilities.

Shapes: H W image, N detections, C classes.
"""

import colorsys
import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipmill.tasks.base import Prediction

IGNORED_COLOR = (28, 28, 32)
UNKNOWN_COLOR = (128, 128, 128)
SCORE_THRESHOLD = 0.3
_MIN_LABELED_SIDE = 160  # pixels: a smaller image has no room for names
_MASK_OPACITY = 0.5
_NUM_BARS = 5
_BAR_HEIGHT = 12  # pixels: a line of Pillow's own font
_BAR_COLOR = (46, 134, 171)
BAR_BACKGROUND = (245, 245, 245)

# Turbo-like ramp from near (warm, bright) to far (cool, dark), as RGB in 0..1 at even steps.
_DEPTH_RAMP = np.array(
    [
        [0.99, 0.91, 0.60],
        [0.98, 0.66, 0.36],
        [0.86, 0.40, 0.36],
        [0.63, 0.24, 0.44],
        [0.39, 0.17, 0.46],
        [0.19, 0.13, 0.36],
        [0.06, 0.06, 0.18],
    ]
)

# The first classes of a list are mostly surroundings: two quiet colors, then lively ones.
_FIRST_COLORS = (
    "c9b89a 8d9bb0 e4572e f3b61f 2e86ab 76b041 a23b72 17bebb "
    "6a4c93 ff8fab 8c564b c5d86d 3d5a80 f26419"
)


@cache
def class_palette(num_classes: int = 256) -> NDArray[Any]:
    """Return colors (C, 3) uint8, read-only; 255 is ignored, others lie a golden ratio apart."""
    fixed = [tuple(bytes.fromhex(color)) for color in _FIRST_COLORS.split()]
    generated = [
        tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.5, 0.75)[i % 2], 0.85))
        for i in range(len(fixed), 256)
    ]
    colors_C3 = np.array([*fixed, *generated], dtype=np.uint8)
    colors_C3[255] = IGNORED_COLOR
    colors_C3.setflags(write=False)
    return colors_C3[:num_classes]


def class_colors(classes_HW: NDArray[Any]) -> NDArray[Any]:
    """Color a map of class ids, as RGB (H, W, 3) uint8; 255 is ignored."""
    colors_HW3: NDArray[Any] = class_palette()[classes_HW]
    return colors_HW3


def depth_colors(depth_HW: NDArray[Any], max_depth_meters: float) -> NDArray[Any]:
    """Color depth in meters, as RGB (H, W, 3) uint8: near bright, far dark, 0 (unknown) gray."""
    position = np.clip(depth_HW / max_depth_meters, 0, 1) * (len(_DEPTH_RAMP) - 1)
    steps = np.arange(len(_DEPTH_RAMP))
    channels = [np.interp(position, steps, _DEPTH_RAMP[:, c]) for c in range(3)]
    colors_HW3 = (np.stack(channels, axis=-1) * 255).astype(np.uint8)
    colors_HW3[depth_HW == 0] = UNKNOWN_COLOR
    return colors_HW3


def draw_detections(
    prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
) -> NDArray[Any]:
    """Draw masks, boxes and names on an image, the most probable on top.

    Returns RGB uint8; a small image is enlarged by a whole factor.
    """
    colors, factor = class_palette(), upscale_factor(image_HW3)
    blended_HW3 = image_HW3.astype(np.float32)
    shown = np.flatnonzero(prediction["scores"] >= SCORE_THRESHOLD)
    shown = shown[np.argsort(prediction["scores"][shown], kind="stable")]
    for n in shown:
        if "masks" not in prediction:
            break
        mask_HW = prediction["masks"][n] > 0
        color = colors[object_color_index(prediction["labels"][n])]
        blended_HW3[mask_HW] = (1 - _MASK_OPACITY) * blended_HW3[mask_HW] + _MASK_OPACITY * color
    image = Image.fromarray(upscale_nearest(blended_HW3.astype(np.uint8), factor))
    canvas = ImageDraw.Draw(image)
    for n in shown:
        label = int(prediction["labels"][n])
        rgb = tuple(colors[object_color_index(label)].tolist())
        x1, y1, x2, y2 = (prediction["boxes"][n] * factor).tolist()
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=rgb)
        if classes:
            corner = (x1 + 2, y1 + 1)
            canvas.text(corner, classes[label], fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def object_color_index(label: int) -> int:
    """Return a class's index in the palette, past the two quiet colors and before the last."""
    return 2 + int(label) % 253


def draw_classes(
    probabilities_C: NDArray[Any], image_HW3: NDArray[Any], classes: tuple[str, ...]
) -> NDArray[Any]:
    """Draw bars of the five most probable classes over an image's lower edge.

    A bar's length is its probability; it holds the class's name where names are known. Returns RGB
    uint8; a small image is enlarged by a whole factor.
    """
    pixels_HW3 = upscale_nearest(image_HW3.astype(np.uint8), upscale_factor(image_HW3))
    image = Image.fromarray(pixels_HW3)
    canvas = ImageDraw.Draw(image)
    width, height = image.size
    labels = np.argsort(-probabilities_C, kind="stable")[:_NUM_BARS]
    top = height - _BAR_HEIGHT * len(labels)
    canvas.rectangle((0, top, width, height), fill=BAR_BACKGROUND)
    for row, label in enumerate(labels.tolist()):
        y, length = top + row * _BAR_HEIGHT, float(probabilities_C[label]) * width
        if length >= 1:
            canvas.rectangle((0, y, length - 1, y + _BAR_HEIGHT - 2), fill=_BAR_COLOR)
        if classes:
            canvas.text((2, y), classes[label], fill="black")
    return np.asarray(image)


def upscale_factor(image_HW3: NDArray[Any]) -> int:
    """Return the whole factor by which an image must grow to have room for names."""
    return -(-_MIN_LABELED_SIDE // min(image_HW3.shape[:2]))


def upscale_nearest(values_HW: NDArray[Any], factor: int) -> NDArray[Any]:
    """Enlarge an array (H, W, ...) by a whole factor, each pixel to a square."""
    return values_HW.repeat(factor, axis=0).repeat(factor, axis=1)


def encode_png(image_HW3: NDArray[Any]) -> bytes:
    """Encode RGB (H, W, 3) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG")
    return buffer.getvalue()

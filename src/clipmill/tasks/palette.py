"""Pictures: colours for classes and for depth, as PNG."""

import colorsys
import io

import numpy as np
from PIL import Image

IGNORED_COLOUR = (28, 28, 32)

# Turbo-like ramp from near (warm, bright) to far (cool, dark), as RGB in 0..1 at even steps.
_RAMP = np.array(
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


def class_palette(num_classes: int = 256) -> np.ndarray:
    """Colours (C, 3) uint8; hues a golden ratio apart, so that neighbours differ."""
    colours = [
        colorsys.hsv_to_rgb((0.08 + i * 0.618034) % 1, (0.5, 0.75)[i % 2], (0.92, 0.72)[i // 2 % 2])
        for i in range(num_classes)
    ]
    colours_C3 = (np.array(colours) * 255).astype(np.uint8)
    colours_C3[255:] = IGNORED_COLOUR
    return colours_C3


def class_colours(classes_HW: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 of class ids; 255 is ignored."""
    picture: np.ndarray = class_palette()[classes_HW]
    return picture


def depth_colours(depth_HW: np.ndarray, max_depth_metres: float) -> np.ndarray:
    """A picture (H, W, 3) uint8 of depth in metres, near bright and far dark."""
    place = np.clip(depth_HW / max_depth_metres, 0, 1) * (len(_RAMP) - 1)
    steps = np.arange(len(_RAMP))
    channels = [np.interp(place, steps, _RAMP[:, c]) for c in range(3)]
    return (np.stack(channels, axis=-1) * 255).astype(np.uint8)


def to_png(picture_HW3: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="PNG")
    return buffer.getvalue()

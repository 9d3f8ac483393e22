"""Pictures: colours for classes and for depth, as PNG."""

import colorsys
import io
from typing import Any
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import Image, ImageDraw
from clipmill.tasks.base import Prediction

IGNORED_COLOUR = (28, 28, 32)
UNKNOWN_COLOUR = (128, 128, 128)
_NAMED_SIDE = 160  # pixels: a smaller picture has no room for names

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


# The first classes of a list are mostly surroundings: two quiet colours, then lively ones.
_FIRST = (
    "c9b89a 8d9bb0 e4572e f3b61f 2e86ab 76b041 a23b72 17bebb "
    "6a4c93 ff8fab 8c564b c5d86d 3d5a80 f26419"
)


def class_palette(num_classes: int = 256) -> NDArray[Any]:
    """Colours (C, 3) uint8: chosen ones, then hues a golden ratio apart; 255 is ignored."""
    chosen = [tuple(bytes.fromhex(colour)) for colour in _FIRST.split()]
    drawn = [
        tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.5, 0.75)[i % 2], 0.85))
        for i in range(len(chosen), 256)
    ]
    colours_C3 = np.array([*chosen, *drawn], dtype=np.uint8)
    colours_C3[255] = IGNORED_COLOUR
    return colours_C3[:num_classes]


def class_colours(classes_HW: NDArray[Any]) -> NDArray[Any]:
    """A picture (H, W, 3) uint8 of class ids; 255 is ignored."""
    picture: NDArray[Any] = class_palette()[classes_HW]
    return picture


def depth_colours(depth_HW: NDArray[Any], max_depth_metres: float) -> NDArray[Any]:
    """A picture (H, W, 3) uint8 of depth in metres: near bright, far dark, 0 (unknown) grey."""
    place = np.clip(depth_HW / max_depth_metres, 0, 1) * (len(_RAMP) - 1)
    steps = np.arange(len(_RAMP))
    channels = [np.interp(place, steps, _RAMP[:, c]) for c in range(3)]
    picture_HW3 = (np.stack(channels, axis=-1) * 255).astype(np.uint8)
    picture_HW3[depth_HW == 0] = UNKNOWN_COLOUR
    return picture_HW3


def enlarging(image_HW3: NDArray[Any]) -> int:
    """By how much a picture must grow, a whole number, to have room for names."""
    return -(-_NAMED_SIDE // min(image_HW3.shape[:2]))


def enlarged(values_HW: NDArray[Any], factor: int) -> NDArray[Any]:
    """A picture (H, W, ...) with each pixel as a square of that side."""
    return values_HW.repeat(factor, axis=0).repeat(factor, axis=1)


def to_png(picture_HW3: NDArray[Any]) -> bytes:
    """A picture (H, W, 3) uint8 as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="PNG")
    return buffer.getvalue()


SHOWN_SCORE = 0.3
_OPACITY = 0.5


def draw_detections(
    prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
) -> NDArray[Any]:
    """The image (H, W, 3), a small one enlarged, with masks, boxes and names; likeliest on top."""
    colours, factor = class_palette(), enlarging(image_HW3)
    picture_HW3 = image_HW3.astype(np.float32)
    shown = np.flatnonzero(prediction["scores"] >= SHOWN_SCORE)
    shown = shown[np.argsort(prediction["scores"][shown], kind="stable")]
    for n in shown:
        here = prediction["masks"][n] > 0
        colour = colours[object_colour(prediction["labels"][n])]
        picture_HW3[here] = (1 - _OPACITY) * picture_HW3[here] + _OPACITY * colour
    picture = Image.fromarray(enlarged(picture_HW3.astype(np.uint8), factor))
    canvas = ImageDraw.Draw(picture)
    for n in shown:
        label = int(prediction["labels"][n])
        rgb = tuple(colours[object_colour(label)].tolist())
        x1, y1, x2, y2 = (prediction["boxes"][n] * factor).tolist()
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=rgb)
        if classes:
            place = (x1 + 2, y1 + 1)
            canvas.text(place, classes[label], fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def object_colour(label: int) -> int:
    """The palette's first two colours are quiet, for grounds, and its last marks the ignored."""
    return 2 + int(label) % 253


_SHOWN = 5
_ROW = 12  # pixels: a line of Pillow's own font
_BAR = (46, 134, 171)
_GROUND = (245, 245, 245)


def draw_classes(
    probabilities_C: NDArray[Any], image_HW3: NDArray[Any], classes: tuple[str, ...]
) -> NDArray[Any]:
    """The picture (H, W, 3) with bars of the likeliest five over its lower edge.

    Bars are as long as probable; names stand in them where the classes are known. A small picture
    is enlarged, or they would have no room.
    """
    picture = Image.fromarray(enlarged(image_HW3.astype(np.uint8), enlarging(image_HW3)))
    canvas = ImageDraw.Draw(picture)
    width, height = picture.size
    likeliest = np.argsort(-probabilities_C, kind="stable")[:_SHOWN]
    top = height - _ROW * len(likeliest)
    canvas.rectangle((0, top, width, height), fill=_GROUND)
    for place, label in enumerate(likeliest.tolist()):
        above, long = top + place * _ROW, float(probabilities_C[label]) * width
        if long >= 1:
            canvas.rectangle((0, above, long - 1, above + _ROW - 2), fill=_BAR)
        if classes:
            canvas.text((2, above), classes[label], fill="black")
    return np.asarray(picture)

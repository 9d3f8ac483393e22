"""A picture of detections.

Shapes: H W image, N detections.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipmill.tasks.contract import Prediction
from clipmill.tasks.palette import class_palette, enlarged, enlarging

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

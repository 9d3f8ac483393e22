"""A picture of class probabilities.

Shapes: H W image, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipmill.tasks.palette import enlarged, enlarging

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

"""PNG files of dense outputs: class ids with their palette, or depth in millimetres.

Shapes: H W an image's height and width.
"""

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.tasks.visualization import class_palette

_MAX_MILLIMETRES: Final = 65535


def encode_output_png(output_HW: NDArray[Any]) -> bytes:
    """Return class ids (uint8) as an indexed PNG, or metres as 16-bit millimetres."""
    if output_HW.dtype == np.uint8:
        height, width = output_HW.shape
        image = Image.frombytes("P", (width, height), output_HW.tobytes())
        image.putpalette(class_palette().tobytes())
    else:
        millimetres_HW = np.clip(np.rint(output_HW * 1000), 0, _MAX_MILLIMETRES)
        image = Image.fromarray(millimetres_HW.astype(np.uint16))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()

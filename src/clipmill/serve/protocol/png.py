"""PNG files of dense outputs: class ids with their palette, or depth as whole numbers.

Shapes: H W an image's height and width.
"""

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clipmill.tasks.visualization import class_palette

VALUES_PER_METER: Final = "values_per_meter"
"""Text chunk of a depth map's PNG."""
_MAX_VALUE: Final = 65535


def encode_output_png(output_HW: NDArray[Any], scale: int = 1000) -> bytes:
    """Return class ids (uint8) as an indexed PNG, or meters times ``scale`` as 16 bits.

    The scale is in the file, as the text ``values_per_meter``.
    """
    text = PngInfo()
    if output_HW.dtype == np.uint8:
        height, width = output_HW.shape
        image = Image.frombytes("P", (width, height), output_HW.tobytes())
        image.putpalette(class_palette().tobytes())
    else:
        values_HW = np.clip(np.rint(output_HW * scale), 0, _MAX_VALUE)
        image = Image.fromarray(values_HW.astype(np.uint16))
        text.add_text(VALUES_PER_METER, str(scale))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, pnginfo=text)
    return file.getvalue()

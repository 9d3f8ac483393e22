"""Pictures within the page, as data URIs."""

import base64
import io

from PIL import Image

from clipmill.analysis.page import Html, tag
from clipmill.images import decode_rgb

_MAX_SIDE = 384
"""Pixels of the longer side that are kept: what the page shows at most, on a dense screen."""
_PIXELATED_BELOW = 160
"""Sides so short are shown enlarged, where pixels are truer than blur."""


def picture(data: bytes, alt: str) -> Html:
    """An image element of a JPEG, PNG or WebP file; large ones are made smaller.

    The file is decoded and encoded anew, so that no metadata of it gets into the page.
    """
    image = decode_rgb(data)
    width, height = image.size
    buffer = io.BytesIO()
    if max(width, height) > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="WEBP", quality=85)
        kind = "webp"
    else:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    pixelated = max(width, height) < _PIXELATED_BELOW
    return tag(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
        alt=alt,
        width=image.width,
        height=image.height,
        class_="picture pixels" if pixelated else "picture",
    )


def strip(cells: list[tuple[str, Html]]) -> Html:
    """Pictures in a row, each with the words above it."""
    figures = (tag("figure", tag("figcaption", words), image) for words, image in cells)
    return tag("div", figures, class_="strip")

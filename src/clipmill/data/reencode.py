"""Making images smaller at ingestion, where that was asked for."""

import io

from PIL import Image

from clipmill.images import decode_rgb

# Pillow shrinks by a whole factor first where that can't be seen in the result.
_REDUCING_GAP = 3.0


def reencode(data: bytes, *, shorter_side: int, jpeg_quality: int) -> tuple[bytes, int, int]:
    """The upright picture as JPEG bytes, and its width and height in pixels.

    ``shorter_side`` bounds the shorter side (0: the size stays). Raises BadSampleError.
    """
    image = decode_rgb(data)
    shorter = min(image.size)
    if shorter_side and shorter > shorter_side:
        scale = shorter_side / shorter
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue(), image.width, image.height

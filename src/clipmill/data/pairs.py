"""An image-text pair that was read and checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipmill.data.image_check import ImageLimits, check_image
from clipmill.data.sources.contract import Entry
from clipmill.errors import BadSampleError

UID_LENGTH = 20
# Half a SHA-256: among 10^10 samples two that differ agree in it once in 10^18 such datasets.
FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """What a shard holds of a sample, and what finds its doubles in others."""

    uid: str
    """UID_LENGTH hex digits of the SHA-256 over image bytes, as the source has them, and origin."""
    image_bytes: bytes
    suffix: str
    """The image's suffix in lower case, with its dot."""
    caption: str
    width: int
    """Pixels of the upright picture."""
    height: int
    origin: str
    fingerprint: bytes
    """FINGERPRINT_BYTES each of the SHA-256 over the origin, and over the source's image bytes."""
    rows: Mapping[str, Mapping[str, Any]]
    """See ``RawPair.rows``."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What is let into a shard, and how images are changed on the way."""

    limits: ImageLimits
    max_caption_bytes: int
    shorter_side: int
    """Pixels to which a longer shorter side is reduced; 0 leaves sizes alone."""
    jpeg_quality: int
    """Quality of re-encoded images; 0 leaves all bytes alone."""

    def read(self, entry: Entry) -> Pair:
        """Read an entry and decode its image as a proof that it can be.

        Raises BadSampleError with one of REASONS, SourceError where the machine is at fault.
        """
        raw = entry.load()
        caption = self._caption(raw.caption)
        data = raw.image_bytes
        width, height = check_image(data, self.limits)
        origin = entry.origin.encode()
        content = hashlib.sha256(data)
        halves = (
            hashed.digest()[:FINGERPRINT_BYTES] for hashed in (hashlib.sha256(origin), content)
        )
        fingerprint = b"".join(halves)
        content.update(b"\0" + origin)
        uid = content.hexdigest()[:UID_LENGTH]
        suffix = raw.suffix
        if self.jpeg_quality and (not self.shorter_side or min(width, height) > self.shorter_side):
            from clipmill.data.reencode import reencode

            data, width, height = reencode(
                data, shorter_side=self.shorter_side, jpeg_quality=self.jpeg_quality
            )
            suffix = ".jpg"
        return Pair(uid, data, suffix, caption, width, height, entry.origin, fingerprint, raw.rows)

    def _caption(self, raw: bytes | str) -> str:
        try:
            data = raw.encode() if isinstance(raw, str) else raw
            text = data.decode("utf-8-sig").strip()
        except UnicodeError as error:
            raise BadSampleError("caption-not-utf8", str(error)) from error
        if not text:
            raise BadSampleError("empty-caption", "nothing but white space")
        if len(data) > self.max_caption_bytes:
            raise BadSampleError("caption-too-long", f"{len(data)} bytes")
        return text

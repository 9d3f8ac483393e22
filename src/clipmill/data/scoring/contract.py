"""What a scorer is given and what it gives back.

A layer of scores has a column for each measure of the picture, or a column for each *caption
kind*: ``real`` holds a value a row, and a captions layer's name holds a list a row, one value for
each of the layer's captions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from clipmill.storage import Parent


@dataclass(frozen=True, slots=True)
class Captions:
    """All captions of one kind in some rows, one after the other."""

    texts: Sequence[str]
    """The captions of row 0, then those of row 1, ..."""
    counts: Sequence[int] | None
    """How many each row has; None where each has one, as the real ones do."""

    def column(self, values: pa.Array) -> pa.Array:
        """``values``, one a caption, as a layer's column: a value, or a list, a row."""
        if self.counts is None:
            return values
        offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def slice(self, start: int, stop: int) -> "Captions":
        """The captions of rows ``start`` to ``stop`` (exclusive)."""
        if self.counts is None:
            return Captions(self.texts[start:stop], None)
        before = sum(self.counts[:start])
        counts = self.counts[start:stop]
        return Captions(self.texts[before : before + sum(counts)], counts)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a shard, read once for all scorers."""

    num_rows: int
    data: Sequence[bytes] | None
    """The image files, if any scorer asks for them."""
    images: Sequence[Image.Image | None] | None
    """The pictures, upright RGB, if any scorer asks for them; None where one doesn't decode."""
    captions: Mapping[str, Captions]
    """By caption kind, those that are asked for."""


class Scorer(Protocol):
    """Measures rows."""

    wants_images: bool
    """Whether it looks at the pictures."""
    parents: tuple[Parent, ...]
    """What it measures with, as the layer's parents."""
    detail: dict[str, str]
    """A few words for people, shown in the layer's lineage."""

    def score(self, rows: Rows) -> dict[str, pa.Array]:
        """The layer's columns but ``uid``, one value a row."""
        ...

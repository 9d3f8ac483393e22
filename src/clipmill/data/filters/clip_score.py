"""Pairs with a CLIP score that is high enough.

DataComp's LAION-2B filter takes 0.28 by ViT-B/32 and English captions (baselines of
mlfoundations/datacomp, ``laion2b``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.filters.contract import (
    Block,
    CaptionOf,
    FilterConfig,
    Judge,
    RowJudge,
    caption_columns,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreFilter(FilterConfig):
    """Keeps pairs whose score reaches a threshold."""

    threshold: float
    """Lowest score that is kept, a cosine similarity."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        # Both in the scores' own precision: 0.7 in fp32 is below 0.7.
        scores = block.caption_numbers(self.layer, self.captions).astype(np.float32)
        keep: NDArray[np.bool_] = scores >= np.float32(self.threshold)
        return keep

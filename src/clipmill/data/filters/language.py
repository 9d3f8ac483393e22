"""Captions in one language (DataComp's basic filtering: English)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
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
class LanguageFilter(FilterConfig):
    """Keeps captions in a language."""

    language: str = "en"
    """ISO 639 code."""
    min_confidence: float = 0.0
    """Least probability of the language, 0..1."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/text"
    """The layer of text scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The text scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        measured = block.captions(self.layer, self.captions)
        is_language = pc.equal(pc.struct_field(measured, "language"), self.language)
        is_sure = pc.greater_equal(pc.struct_field(measured, "confidence"), self.min_confidence)
        keep: NDArray[np.bool_] = (
            pc.and_(is_language, is_sure).fill_null(False).to_numpy(zero_copy_only=False)
        )
        return keep

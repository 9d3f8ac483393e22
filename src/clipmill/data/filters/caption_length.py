"""Captions with enough words and characters (DataComp, Gadre et al. 2023, appendix on basic
filtering: over two words and over five characters).
"""  # noqa: D205  # the source belongs to the first sentence

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
class CaptionLengthFilter(FilterConfig):
    """Keeps captions with enough words and characters."""

    min_words: int = 3
    """Fewest words, divided by white space."""
    min_characters: int = 6
    """Fewest characters."""
    max_words: int = 0
    """Most words; 0 for any number."""
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
        words, characters = (
            pc.struct_field(measured, name).fill_null(0).to_numpy(zero_copy_only=False)
            for name in ("words", "characters")
        )
        keep: NDArray[np.bool_] = (words >= self.min_words) & (characters >= self.min_characters)
        return keep & (words <= self.max_words) if self.max_words else keep

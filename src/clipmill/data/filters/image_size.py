"""Pictures that are large enough (DataComp's basic filtering: shorter side of 200 or more)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.filters.contract import Block, FilterConfig, Judge, RowJudge


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSizeFilter(FilterConfig):
    """Keeps pictures with a shorter side that is long enough."""

    min_side: int = 200
    """Shortest side that is kept, pixels."""
    layer: str = "score/image"
    """The layer of image scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """Width and height."""
        return {self.layer: ("width", "height")}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        width, height = (block.numbers(self.layer, name) for name in ("width", "height"))
        keep: NDArray[np.bool_] = np.minimum(width, height) >= self.min_side
        return keep

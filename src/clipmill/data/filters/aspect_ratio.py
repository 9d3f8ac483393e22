"""Pictures that aren't too long (DataComp's basic filtering: longer side at most thrice the
shorter).
"""  # noqa: D205  # the source belongs to the first sentence

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.filters.contract import Block, FilterConfig, Judge, RowJudge


@dataclass(frozen=True, kw_only=True, slots=True)
class AspectRatioFilter(FilterConfig):
    """Keeps pictures whose sides aren't too unlike."""

    max_aspect: float = 3.0
    """Largest longer side by shorter side that is kept."""
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
        # Exactly, which the layer's aspect in fp32 isn't.
        width, height = (block.numbers(self.layer, name) for name in ("width", "height"))
        keep: NDArray[np.bool_] = (
            np.maximum(width, height) <= np.minimum(width, height) * self.max_aspect
        )
        return keep

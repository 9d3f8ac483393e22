"""The pairs with the highest CLIP scores (DataComp: the top 30 % by ViT-L/14)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.filters.contract import Block, CaptionOf, FilterConfig, Judge, caption_columns
from clipmill.data.top_fraction import TopFraction
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTopFractionFilter(FilterConfig):
    """Keeps the highest scores among what earlier filters left: put first, those of the pool."""

    fraction: float = 0.3
    """Part that is kept, above 0 and at most 1."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    def __post_init__(self) -> None:
        """Refuse a fraction out of range (ConfigError)."""
        check_fraction(self.fraction)

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Takes two passes to find the threshold."""
        del num_rows
        return _Judge(self)


class _Judge(Judge):
    num_passes = TopFraction.num_passes

    def __init__(self, config: ClipTopFractionFilter) -> None:
        self._config = config
        self._top = TopFraction(config.fraction)

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        self._top.see(self._scores(block)[alive])

    def end_pass(self) -> None:
        self._top.end_pass()

    def judge(self, block: Block) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = self._scores(block) >= self._top.threshold
        return keep

    def _scores(self, block: Block) -> NDArray[np.float32]:
        found = block.caption_numbers(self._config.layer, self._config.captions)
        return found.astype(np.float32)


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless it's above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"fraction was {fraction}",
            expected="above 0 and at most 1",
            action="give fraction such a value",
        )

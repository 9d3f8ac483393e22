"""Accuracy of classification.

Shapes: C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError


class TopK:
    """Counts, image by image, whether the truth is among the k likeliest classes."""

    def __init__(self, ks: Sequence[int]) -> None:
        self._hits = dict.fromkeys(ks, 0)
        self._total = 0

    def update(self, probabilities_C: NDArray[Any], label: int) -> None:
        """Add an image; of classes that are equally likely the first comes first."""
        order = np.argsort(-probabilities_C, kind="stable")
        rank = int(np.flatnonzero(order == label)[0])
        self._total += 1
        for k in self._hits:
            self._hits[k] += rank < k

    def result(self) -> dict[str, float]:
        """``top1`` and so on, in percent; SourceError without a single image."""
        if not self._total:
            raise SourceError(
                "there was no image to judge",
                expected="at least one image of a known class",
                action="give data with images",
            )
        return {f"top{k}": 100 * hits / self._total for k, hits in self._hits.items()}

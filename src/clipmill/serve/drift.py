"""Embeddings of the images that are asked about, against those of the training.

Shapes: B batch, C embedding width.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.models.embedding_stats import EmbeddingStatistics

_NUM_REMEMBERED: Final = 256
_NUM_NEEDED: Final = 16


class EmbeddingDrift:
    """Follows the mean of the last few hundred images. ``add``: one thread at a time."""

    def __init__(self, training: EmbeddingStatistics) -> None:
        self._training = training
        self._mean_C: NDArray[Any] = np.zeros(len(training.mean))
        self._num_images = 0

    def add(self, embeddings_BC: NDArray[Any]) -> None:
        """Count a batch in: a plain mean at first, then one that forgets exponentially."""
        for embedding_C in embeddings_BC[np.isfinite(embeddings_BC).all(axis=1)]:
            self._num_images += 1
            share = 1 / min(self._num_images, _NUM_REMEMBERED)
            self._mean_C = self._mean_C + share * (embedding_C - self._mean_C)

    def distance(self) -> float:
        """In spreads of the training's embeddings; NaN before there are enough images to tell.

        The mean of n images like the training's is about ``n ** -0.5`` away by chance.
        """
        if self._num_images < _NUM_NEEDED:
            return math.nan
        return self._training.distance(self._mean_C)

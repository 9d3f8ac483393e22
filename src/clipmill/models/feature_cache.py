"""Maps of a frozen encoder, kept by image so that each is computed once.

Shapes: B batch, D width, h w a map's height and width.
"""

import torch
from torch import Tensor

from clipmill.models.dense import DenseEncoder

MAX_BYTES = 4 * 2**30
"""Most memory that kept maps take; images beyond it are encoded anew each time."""


class FeatureCache:
    """Calls a frozen encoder on the images of a batch whose maps it doesn't have yet."""

    def __init__(self, encoder: DenseEncoder, *, max_bytes: int = MAX_BYTES) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._maps: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images_B3HW: Tensor, keys_B: Tensor) -> list[Tensor]:
        """The encoder's maps (B, D, h, w), finest first; equal keys mean equal images."""
        keys = keys_B.tolist()
        new = [number for number, key in enumerate(keys) if key not in self._maps]
        fresh: dict[int, list[Tensor]] = {}
        if new:
            maps = self._encoder(images_B3HW[new])
            for row, number in enumerate(new):
                fresh[keys[number]] = [map_BDhw[row].clone() for map_BDhw in maps]
            for key, kept in fresh.items():
                size = sum(map_Dhw.nbytes for map_Dhw in kept)
                if self._num_bytes + size <= self._max_bytes:
                    self._num_bytes += size
                    self._maps[key] = kept
        rows = [self._maps.get(key) or fresh[key] for key in keys]
        return [torch.stack(level) for level in zip(*rows, strict=True)]

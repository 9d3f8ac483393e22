"""Dense outputs of a batch, of as many images at once as a GPU's kernels can count."""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_ELEMENTS = 2**30
"""Of one map. Bilinear resizing on a GPU counts in 32 bits where channels lie last (torch 2.11:
``upsample_bilinear2d_nhwc``); half of that is 4 GB of fp32, and fills any GPU."""


def few_at_once(run: Callable[[Tensor], Tensor], batch: Tensor, elements: int) -> Tensor:
    """``run`` of a batch (B, ...), each item of which becomes a map of so many elements on the way.

    Items must not see each other in ``run``.
    """
    pieces = torch.split(batch, max(1, MOST_ELEMENTS // elements))
    return run(batch) if len(pieces) == 1 else torch.cat([run(piece) for piece in pieces])

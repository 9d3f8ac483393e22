"""Statistics of a model's embeddings of its training images, to detect a shift of the images.

Shapes: N images, B batch, C embedding width.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

EmbeddingCallback = Callable[[NDArray[np.float32]], None]
"""Takes the embeddings (B, C) of a batch of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingStatistics:
    """Mean and spread of the embeddings of a set of images."""

    mean: tuple[float, ...]
    """Their mean (C)."""
    spread: float
    """Root mean square distance of single embeddings from the mean; above 0."""
    num_images: int
    """Number of images."""

    def distance(self, mean_C: NDArray[Any]) -> float:
        """Return the distance of another mean (C) from this one, in spreads."""
        return float(np.linalg.norm(mean_C - np.array(self.mean))) / self.spread


def statistics_of(embeddings_NC: NDArray[Any]) -> EmbeddingStatistics | None:
    """Return the statistics of embeddings (N, C); None where they have no spread."""
    if len(embeddings_NC) < 2:
        return None
    mean_C = embeddings_NC.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(((embeddings_NC - mean_C) ** 2).sum(axis=1).mean()))
    if not (np.isfinite(spread) and spread > 0):
        return None
    return EmbeddingStatistics(
        mean=tuple(mean_C.tolist()), spread=spread, num_images=len(embeddings_NC)
    )


def evenly_spaced_indices(length: int, number: int) -> list[int]:
    """Return up to ``number`` indices of a sequence, evenly spaced, both ends included."""
    indices: list[int] = (
        np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist()
    )
    return indices


def register_embedding_hook(
    network: "nn.Module", encoder: "nn.Module", callback: EmbeddingCallback
) -> None:
    """Call ``callback`` with the embeddings of each batch that passes through the network.

    An embedding is the encoder's last output, averaged over positions, and over the encoder's calls
    where the network runs it several times per image. Several threads may run the network; the
    callback is called for one pass at a time.
    """
    import torch

    thread = threading.local()
    calling = threading.Lock()

    def begin(*_: object) -> None:
        thread.pooled = []  # what a failed pass left is gone

    def keep(_: object, __: object, output: "Tensor | list[Tensor]") -> None:
        last = output[-1] if isinstance(output, list) else output
        thread.pooled.append(last.flatten(2).mean(dim=2) if last.ndim > 2 else last)

    def end(*_: object) -> None:
        embeddings_BC = torch.stack(thread.pooled).float().mean(dim=0).cpu().numpy()
        with calling:
            callback(embeddings_BC)

    network.register_forward_pre_hook(begin)
    encoder.register_forward_hook(keep)
    network.register_forward_hook(end)

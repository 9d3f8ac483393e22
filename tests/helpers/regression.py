"""A small objective whose every kind of state matters: weights, buffers, dropout."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.engine.objective import Objective


class Regression(Objective):
    """Squared error of a small network with batch norm and dropout."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(5, 8),
            nn.BatchNorm1d(8) if norm else nn.LayerNorm(8),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(8, 1),
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"squared": F.mse_loss(self.network(batch["x"])[:, 0], batch["y"])}


def regression_batches(cursor: int, num_samples: int = 8) -> Iterator[dict[str, Tensor]]:
    """Batch k depends on k alone."""
    for step in itertools.count(cursor):
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(num_samples, 5, generator=generator)
        yield {"x": x, "y": x.sum(1).sin()}

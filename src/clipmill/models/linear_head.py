"""A linear probe of dense features: batch norm and a 1x1 convolution on each map, summed.

DINOv2's linear head (Oquab et al. 2023, section 7.4) is a batch norm and a linear layer on the
concatenated features of a pixel. A 1x1 convolution commutes with resizing and concatenation, so
here each map is projected at its own resolution, and the results are resized and added.

Shapes: B batch, C outputs, D width, h w a map's height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Module):
    """Maps, finest first, to ``num_outputs`` values a pixel at the finest map's size.

    With ``position_side`` P a learned bias of P x P places, resized to the map, is added: what can
    be said of a pixel from its place alone, such as that the floor is nearer at the bottom. A
    convolutional encoder's features hardly know their place.
    """

    def __init__(
        self, channels: Sequence[int], num_outputs: int, *, position_side: int = 0
    ) -> None:
        super().__init__()
        # Features come from a frozen encoder at any scale; only the projection is learned.
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in channels)
        self.projections = nn.ModuleList(
            nn.Conv2d(width, num_outputs, 1, bias=number == 0)
            for number, width in enumerate(channels)
        )
        for projection in self.projections:
            nn.init.normal_(projection.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(self.projections[0].bias)  # type: ignore[arg-type]
        self.position: nn.Parameter | None = None
        if position_side:
            self.position = nn.Parameter(torch.zeros(1, num_outputs, position_side, position_side))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Outputs (B, C, h, w); h, w are the first map's."""
        size = maps[0].shape[-2:]
        sum_BChw: Tensor | None = None
        for map_BDhw, norm, projection in zip(maps, self.norms, self.projections, strict=True):
            projected_BChw = _resized(projection(norm(map_BDhw)), size)
            sum_BChw = projected_BChw if sum_BChw is None else sum_BChw + projected_BChw
        assert sum_BChw is not None, "an encoder has at least one map"
        return sum_BChw if self.position is None else sum_BChw + _resized(self.position, size)


def _resized(values_BChw: Tensor, size: torch.Size) -> Tensor:
    if values_BChw.shape[-2:] == size:
        return values_BChw
    return F.interpolate(values_BChw, size, mode="bilinear", align_corners=False)

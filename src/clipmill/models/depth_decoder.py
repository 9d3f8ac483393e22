"""The depth decoder of Xie et al. 2023 (built on GLPDepth), for a map at any stride.

There the map has stride 32: three deconvolutions bring it to 4, a bilinear step to 1. For a map of
another stride the bilinear step is by another factor (1.75 for 14), so that the output always
reaches the input's size while the learned steps stay.

Shapes: B batch, D width of the encoder's map, C width of the head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.execution import run_in_chunks

_DECONV_CHANNELS = 32
_NUM_DECONVS = 3
INIT_STD = 0.001
"""Standard deviation of start weights (Xie et al. 2023)."""


class DepthDecoder(nn.Module):
    """A map (B, D, H / stride, W / stride) to depth in metres (B, 1, H, W)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        max_depth_metres: float,
        *,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        num_deconvs = min(_NUM_DECONVS, int(math.log2(stride)))
        self._factor = stride / 2**num_deconvs
        self._max_depth_metres = max_depth_metres
        layers: list[nn.Module] = []
        width = in_channels
        for _ in range(num_deconvs):
            layers += [
                nn.ConvTranspose2d(width, _DECONV_CHANNELS, 2, stride=2, bias=False),
                nn.BatchNorm2d(_DECONV_CHANNELS),
                nn.ReLU(inplace=True),
            ]
            width = _DECONV_CHANNELS
        layers += [
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        self.up = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 3, padding=1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """Depth in metres, between 0 and the largest."""
        map_BChw = self.up(map_BDhw)
        elements = round(math.prod(map_BChw.shape[1:]) * self._factor**2)
        return run_in_chunks(self._depth, map_BChw, elements)

    def _depth(self, map_BChw: Tensor) -> Tensor:
        if self._factor > 1:
            size = [round(side * self._factor) for side in map_BChw.shape[-2:]]
            map_BChw = F.interpolate(map_BChw, size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(map_BChw)) * self._max_depth_metres

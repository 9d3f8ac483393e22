"""UPerNet's decode head in plain torch, to serve what mmseg's trained.

Unified Perceptual Parsing for Scene Understanding (Xiao et al. 2018, arXiv:1807.10221): pyramid
pooling on the coarsest map (PSPNet's, Zhao et al. 2017), a feature pyramid over all (Lin et al.
2017), and one classifier of every pixel on their concatenation.

Shapes: B batch, C classes, D width, h w a map's height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class UperNetHead(nn.Module):
    """Maps, finest first, to logits at the finest map's size.

    Takes the state dict of mmseg's UPerHead as it is (in a whole segmentor's, what lies under
    ``decode_head.``), provided that head has batch norm, ReLU and ``align_corners=False``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvBnRelu(coarsest, channels, 1))
            for scale in pool_scales
        )
        self.bottleneck = ConvBnRelu(coarsest + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvBnRelu(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvBnRelu(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvBnRelu(len(in_channels) * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) from maps (B, in_channels[i], h_i, w_i); h, w are the first's."""
        *finer, coarsest_BDhw = maps
        above_BDhw = self._pool(coarsest_BDhw)
        levels = [above_BDhw]
        for lateral, fpn, map_BDhw in reversed(
            list(zip(self.lateral_convs, self.fpn_convs, finer, strict=True))
        ):
            above_BDhw = lateral(map_BDhw) + _resize(above_BDhw, like=map_BDhw)
            levels.insert(0, fpn(above_BDhw))
        joined_BDhw = torch.cat([_resize(level, like=levels[0]) for level in levels], dim=1)
        logits_BChw: Tensor = self.conv_seg(self.fpn_bottleneck(joined_BDhw))
        return logits_BChw

    def _pool(self, map_BDhw: Tensor) -> Tensor:
        """The coarsest map, seen at several scales."""
        pooled = [_resize(pool(map_BDhw), like=map_BDhw) for pool in self.psp_modules]
        joined_BDhw: Tensor = self.bottleneck(torch.cat([map_BDhw, *pooled], dim=1))
        return joined_BDhw


class ConvBnRelu(nn.Module):
    """Convolution that keeps the size, batch norm, ReLU; parameters named as in mmcv's."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h, w)."""
        return functional.relu(self.bn(self.conv(map_BDhw)), inplace=True)


def _resize(map_BDhw: Tensor, *, like: Tensor) -> Tensor:
    return functional.interpolate(map_BDhw, like.shape[-2:], mode="bilinear", align_corners=False)

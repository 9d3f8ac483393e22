"""Decode heads of the dense tasks in plain torch, to serve what mmseg's heads trained.

UPerNet (Xiao et al. 2018, arXiv:1807.10221) and SemanticFPN (Kirillov et al. 2019,
arXiv:1901.02446) for segmentation, Xie et al.'s decoder for depth, and a linear probe for both.

Shapes: B batch, C classes or outputs, D width, h w a map's height and width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn import functional as F

from clipmill.errors import ConfigError
from clipmill.models.execution import run_in_chunks
from clipmill.models.necks import StageFpn


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


class SemanticFpnHead(nn.Module):
    """Maps, finest first, to logits at the finest map's size.

    ``neck`` takes the state dict of mmseg's FPN, and all else that of its FPNHead, provided that
    the head has batch norm, ReLU and ``align_corners=False``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.neck = StageFpn(in_channels, width)
        self.scale_heads = nn.ModuleList(
            _scale_head(width, channels, doublings) for doublings in num_upsamples(strides)
        )
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) from maps (B, in_channels[i], h_i, w_i); h, w are the first's."""
        levels = [
            head(level) for head, level in zip(self.scale_heads, self.neck(list(maps)), strict=True)
        ]
        sum_BDhw = levels[0]
        for level in levels[1:]:
            sum_BDhw = sum_BDhw + functional.interpolate(
                level, sum_BDhw.shape[-2:], mode="bilinear", align_corners=False
            )
        logits_BChw: Tensor = self.conv_seg(sum_BDhw)
        return logits_BChw


def num_upsamples(strides: Sequence[int]) -> list[int]:
    """Return the number of 2x upsamplings from each level to the first one's size.

    Raises:
        ConfigError: a stride isn't a power of two times the first.
    """
    doublings = [round(math.log2(stride / strides[0])) for stride in strides]
    if any(strides[0] * 2**n != s for n, s in zip(doublings, strides, strict=True)):
        raise ConfigError(
            f"a SemanticFPN head on maps of strides {', '.join(map(str, strides))}",
            expected="strides that are the first times a power of two",
            action="choose another encoder, or head=upernet",
        )
    return doublings


def _scale_head(width: int, channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(max(1, doublings)):
        layers.append(ConvBnRelu(channels if i else width, channels, 3))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


_DECONV_CHANNELS = 32
_NUM_DECONVS = 3
INIT_STD = 0.001
"""Standard deviation of start weights (Xie et al. 2023)."""


class DepthDecoder(nn.Module):
    """A map (B, D, H / stride, W / stride) to depth in meters (B, 1, H, W)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        max_depth_meters: float,
        *,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        num_deconvs = min(_NUM_DECONVS, int(math.log2(stride)))
        self._factor = stride / 2**num_deconvs
        self._max_depth_meters = max_depth_meters
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
        """Depth in meters, between 0 and the largest."""
        map_BChw = self.up(map_BDhw)
        elements = round(math.prod(map_BChw.shape[1:]) * self._factor**2)
        return run_in_chunks(self._depth, map_BChw, elements)

    def _depth(self, map_BChw: Tensor) -> Tensor:
        if self._factor > 1:
            size = [round(side * self._factor) for side in map_BChw.shape[-2:]]
            map_BChw = F.interpolate(map_BChw, size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(map_BChw)) * self._max_depth_meters


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

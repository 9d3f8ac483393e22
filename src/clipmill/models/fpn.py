"""Feature pyramids of detection: one width at every stride, and one coarser map.

Feature Pyramid Networks for Object Detection (Lin et al. 2017, arXiv:1612.03144).

Shapes: B batch, D width, h w a map's height and width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.dense import DenseEncoder
from clipmill.models.pyramid import SimpleFeaturePyramid


class StageFpn(nn.Module):
    """A hierarchical encoder's stages, each joined with what lies above; named as in mmdet."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(channels, width, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(_Conv(width, width, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, width, ...) at the strides of ``maps``."""
        joined = [lateral(m) for lateral, m in zip(self.lateral_convs, maps, strict=True)]
        for finer in reversed(range(len(joined) - 1)):
            above = F.interpolate(joined[finer + 1], joined[finer].shape[-2:], mode="nearest")
            joined[finer] = joined[finer] + above
        return [conv(m) for conv, m in zip(self.fpn_convs, joined, strict=True)]


class DetectionNeck(nn.Module):
    """Maps for proposals and regions: ViTDet's pyramid for a plain encoder, else an FPN."""

    def __init__(self, encoder: DenseEncoder, width: int) -> None:
        super().__init__()
        is_plain = len(encoder.strides) < 4
        self.pyramid: nn.Module = (
            SimpleFeaturePyramid(encoder.channels[-1], width)
            if is_plain
            else StageFpn(encoder.channels, width)
        )
        self._is_plain = is_plain
        finest = encoder.strides[-1] // 4 if is_plain else encoder.strides[0]
        self.strides = tuple(finest * 2**level for level in range(5))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Five maps (B, width, ...), each half as fine as the one before."""
        levels: list[Tensor] = self.pyramid(maps[-1] if self._is_plain else maps)
        # The fifth is for large proposals alone (Lin et al. 2017, section 4.1).
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


class _Conv(nn.Module):
    """A convolution that keeps the size, one name deeper, as mmcv's ConvModule has it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        convolved: Tensor = self.conv(map_BDhw)
        return convolved

"""Feature pyramids: from an encoder's maps to those that a segmentation or detection head reads.

ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527, section 3) for the one map of a
plain ViT; Feature Pyramid Networks (Lin et al. 2017, arXiv:1612.03144) for a hierarchical encoder.

Shapes: B batch, D the encoder's width, h w a map's height and width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.errors import ConfigError
from clipmill.models.encoders import DenseEncoder


class SimpleFeaturePyramid(nn.Module):
    """A map at stride s to maps of one width at strides s / 4, s / 2, s and 2 s."""

    def __init__(self, in_channels: int, width: int = 256) -> None:
        super().__init__()
        if in_channels % 4:
            raise ConfigError(
                f"a feature pyramid on {in_channels} channels",
                expected="a multiple of 4, for they are halved twice",
                action="choose an encoder of another width",
            )
        half, quarter = in_channels // 2, in_channels // 4
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    _upsample2x(in_channels, half),
                    LayerNorm2d(half),
                    nn.GELU(),
                    _upsample2x(half, quarter),
                    *_to_width(quarter, width),
                ),
                nn.Sequential(_upsample2x(in_channels, half), *_to_width(half, width)),
                nn.Sequential(*_to_width(in_channels, width)),
                nn.Sequential(nn.MaxPool2d(2), *_to_width(in_channels, width)),
            ]
        )

    def forward(self, map_BDhw: Tensor) -> list[Tensor]:
        """Maps (B, width, ...) of 4, 2, 1 and 1/2 times h, w; the last is rounded down."""
        return [level(map_BDhw) for level in self.levels]


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, D, h, w), at each place by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)  # detectron2's ViTDet

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.LayerNorm's name
        """Normalized, of the same shape."""
        channels_last_BhwD = input.permute(0, 2, 3, 1)
        normalized_BhwD = F.layer_norm(
            channels_last_BhwD, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normalized_BhwD.permute(0, 3, 1, 2)


def _upsample2x(in_channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)


def _to_width(in_channels: int, width: int) -> tuple[nn.Module, ...]:
    """A 1x1 and a 3x3 convolution, each normalized."""
    return (
        nn.Conv2d(in_channels, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    )


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


class PyramidNeck(nn.Module):
    """ViTDet's pyramid over the one map of a plain encoder."""

    def __init__(self, encoder: DenseEncoder, width: int) -> None:
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(encoder.channels[-1], width)
        self.channels = (width,) * 4

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Strides of a quarter, half, whole and twice the last map's."""
        pyramid: list[Tensor] = self.pyramid(maps[-1])
        return pyramid


class StageNeck(nn.Module):
    """A hierarchical encoder's own four stages, as they are."""

    def __init__(self, encoder: DenseEncoder) -> None:
        super().__init__()
        self.channels = encoder.channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps themselves."""
        return maps


def build_neck(encoder: DenseEncoder, width: int) -> PyramidNeck | StageNeck:
    """A pyramid of that width where the encoder has fewer than four maps, else its stages."""
    return StageNeck(encoder) if len(encoder.strides) == 4 else PyramidNeck(encoder, width)


def feature_strides(encoder: DenseEncoder) -> tuple[int, ...]:
    """Strides of the four maps that ``build_neck``'s neck gives, in quarters of a pixel.

    A pyramid's finest map has a quarter of its encoder's stride, which for a patch of 14 pixels is
    no whole number.
    """
    if len(encoder.strides) == 4:
        return tuple(4 * stride for stride in encoder.strides)
    return tuple(round(encoder.strides[-1] * 4 * factor) for factor in (0.25, 0.5, 1, 2))

"""ViTDet's simple feature pyramid: four maps from a plain ViT's last one.

Exploring Plain Vision Transformer Backbones for Object Detection (Li et al. 2022,
arXiv:2203.16527), section 3.

Shapes: B batch, D the encoder's width, h w a map's height and width.
"""

from torch import Tensor, nn
from torch.nn import functional

from clipmill.errors import ConfigError


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
                    _twice_as_fine(in_channels, half),
                    LayerNorm2d(half),
                    nn.GELU(),
                    _twice_as_fine(half, quarter),
                    *_to_width(quarter, width),
                ),
                nn.Sequential(_twice_as_fine(in_channels, half), *_to_width(half, width)),
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
        """Normalised, of the same shape."""
        channels_last_BhwD = input.permute(0, 2, 3, 1)
        normalized_BhwD = functional.layer_norm(
            channels_last_BhwD, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normalized_BhwD.permute(0, 3, 1, 2)


def _twice_as_fine(in_channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)


def _to_width(in_channels: int, width: int) -> tuple[nn.Module, ...]:
    """A 1x1 and a 3x3 convolution, each normalised."""
    return (
        nn.Conv2d(in_channels, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    )

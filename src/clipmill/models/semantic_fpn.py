"""SemanticFPN's neck and head in plain torch, to serve what mmseg's trained.

Panoptic Feature Pyramid Networks (Kirillov et al. 2019, arXiv:1901.02446), section 3.1: a feature
pyramid (Lin et al. 2017), each of whose levels is brought to the finest one's size, and their sum.

Shapes: B batch, C classes, D width, h w a map's height and width.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from clipmill.errors import ConfigError
from clipmill.models.necks import StageFpn
from clipmill.models.upernet import ConvBnRelu


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

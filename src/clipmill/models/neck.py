"""From an encoder's maps to the four that a dense head reads."""

from torch import Tensor, nn

from clipmill.models.dense import DenseEncoder
from clipmill.models.pyramid import SimpleFeaturePyramid


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


def map_strides(encoder: DenseEncoder) -> tuple[int, ...]:
    """Strides of the four maps that ``build_neck``'s neck gives, in quarters of a pixel.

    A pyramid's finest map has a quarter of its encoder's stride, which for a patch of 14 pixels is
    no whole number.
    """
    if len(encoder.strides) == 4:
        return tuple(4 * stride for stride in encoder.strides)
    return tuple(round(encoder.strides[-1] * 4 * factor) for factor in (0.25, 0.5, 1, 2))

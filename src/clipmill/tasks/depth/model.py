"""The depth network: an encoder and Xie et al.'s decoder.

Shapes: B batch, H W image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from clipmill.models.dense import DenseEncoder
from clipmill.models.depth_decoder import DepthDecoder
from clipmill.models.linear_head import LinearHead
from clipmill.tasks.inference import run_at, run_in_squares
from clipmill.tasks.depth.task import MAX_DEPTH_METRES, DepthConfig


class LinearDepthHead(nn.Module):
    """A linear probe of all maps, with a bias by position, to depth at the image's size."""

    def __init__(
        self, encoder: DenseEncoder, max_depth_metres: float, *, position_side: int
    ) -> None:
        super().__init__()
        self.head = LinearHead(encoder.channels, 1, position_side=position_side)
        self._factor = encoder.strides[0]
        self._max_depth_metres = max_depth_metres

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Metres (B, 1, H, W)."""
        return F.interpolate(
            self.coarse(maps), scale_factor=self._factor, mode="bilinear", align_corners=False
        )

    def coarse(self, maps: list[Tensor]) -> Tensor:
        """Metres (B, 1, h, w) at the finest map's places: a sigmoid's share of the range."""
        return torch.sigmoid(self.head(maps)) * self._max_depth_metres


class DepthNetwork(nn.Module):
    """Encoder and decoder: images (B, 3, H, W) in 0..1 to metres (B, H, W)."""

    def __init__(self, config: DepthConfig, encoder: DenseEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder: DepthDecoder | LinearDepthHead
        if config.head == "linear":
            self.decoder = LinearDepthHead(
                encoder, MAX_DEPTH_METRES, position_side=config.position_side
            )
        else:
            self.decoder = DepthDecoder(
                encoder.channels[-1],
                config.head_channels or encoder.channels[-1],
                encoder.strides[-1],
                MAX_DEPTH_METRES,
                start_std=config.start_std,
            )
        self._short_side = config.crop_size
        self._num_windows = config.num_windows
        self._flip_test = config.flip_test

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Depth at any image size, float32."""
        depth_B1HW = self._at_trained_size(images_B3HW)
        if self._flip_test:
            depth_B1HW = (depth_B1HW + self._at_trained_size(images_B3HW.flip(-1)).flip(-1)) / 2
        return depth_B1HW[:, 0].float()

    def depth(self, images_B3HW: Tensor) -> Tensor:
        """Depth (B, 1, H, W) of images whose sides the encoder's stride divides."""
        maps = self.encoder(images_B3HW)
        is_linear = isinstance(self.decoder, LinearDepthHead)
        depth_B1HW: Tensor = self.decoder(maps if is_linear else maps[-1])
        return depth_B1HW

    def _at_trained_size(self, images_B3HW: Tensor) -> Tensor:
        return run_at(
            images_B3HW,
            self._short_side,
            1,
            lambda scaled: run_in_squares(scaled, self._num_windows, self._padded),
        )

    def _padded(self, images_B3HW: Tensor) -> Tensor:
        """Depth of images of any size, as they are."""
        side = min(images_B3HW.shape[-2:])
        return run_at(images_B3HW, side, self.encoder.strides[-1], self.depth)

"""Depth network: an encoder and Xie et al.'s decoder.

Shapes: B batch, H W image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.encoders import DenseEncoder
from clipmill.models.execution import resize_and_run, shifted_window_inference
from clipmill.models.heads import DepthDecoder, LinearHead
from clipmill.tasks.config import DepthConfig

_MIN_DEPTH_METERS = 1e-3
_BIN_OFFSET = 0.1


class LinearDepthHead(nn.Module):
    """A linear probe of all maps, with a bias by position, to depth at the image's size.

    With ``num_bins`` above 1, depth is the mean of evenly spaced depths, weighted by the outputs'
    positive part plus 0.1, as DINOv2's and DINOv3's depth heads have it.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        max_depth_meters: float,
        *,
        position_side: int,
        num_bins: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.head = LinearHead(encoder.channels, num_bins, position_side=position_side)
        self._dropout = nn.Dropout2d(dropout)
        self._num_bins = num_bins
        self._factor = encoder.strides[0]
        self._max_depth_meters = max_depth_meters

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return depth (B, 1, H, W), meters."""
        return F.interpolate(
            self.coarse(maps), scale_factor=self._factor, mode="bilinear", align_corners=False
        )

    def coarse(self, maps: list[Tensor]) -> Tensor:
        """Return depth (B, 1, h, w), meters, at the finest map's resolution."""
        outputs_BKhw = self.head([self._dropout(each) for each in maps])
        if self._num_bins == 1:
            return torch.sigmoid(outputs_BKhw) * self._max_depth_meters
        weights_BKhw = outputs_BKhw.relu() + _BIN_OFFSET
        bins_K11 = torch.linspace(
            _MIN_DEPTH_METERS, self._max_depth_meters, self._num_bins, device=weights_BKhw.device
        ).view(-1, 1, 1)
        weighted_B1hw: Tensor = (weights_BKhw * bins_K11).sum(dim=1, keepdim=True)
        total_B1hw: Tensor = weights_BKhw.sum(dim=1, keepdim=True)
        return weighted_B1hw / total_B1hw


class DepthNetwork(nn.Module):
    """Encoder and decoder: images (B, 3, H, W) in 0..1 to meters (B, H, W)."""

    def __init__(self, config: DepthConfig, encoder: DenseEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder: DepthDecoder | LinearDepthHead
        if config.head == "linear":
            self.decoder = LinearDepthHead(
                encoder,
                config.max_depth_meters,
                position_side=config.position_side,
                num_bins=config.num_bins,
                dropout=config.linear_dropout,
            )
        else:
            self.decoder = DepthDecoder(
                encoder.channels[-1],
                config.head_channels or encoder.channels[-1],
                encoder.strides[-1],
                config.max_depth_meters,
                init_std=config.init_std,
            )
        self._short_side = config.crop_size
        self._num_windows = config.num_test_windows
        self._flip_test = config.flip_augment_test

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return depth at the images' size, which may be any, float32."""
        depth_B1HW = self._resize_to_train_size(images_B3HW)
        if self._flip_test:
            depth_B1HW = (
                depth_B1HW + self._resize_to_train_size(images_B3HW.flip(-1)).flip(-1)
            ) / 2
        return depth_B1HW[:, 0].float()

    def depth(self, images_B3HW: Tensor) -> Tensor:
        """Return depth (B, 1, H, W) of images whose sides the encoder's stride divides."""
        maps = self.encoder(images_B3HW)
        is_linear = isinstance(self.decoder, LinearDepthHead)
        depth_B1HW: Tensor = self.decoder(maps if is_linear else maps[-1])
        return depth_B1HW

    def _resize_to_train_size(self, images_B3HW: Tensor) -> Tensor:
        return resize_and_run(
            images_B3HW,
            self._short_side,
            1,
            lambda scaled: shifted_window_inference(scaled, self._num_windows, self._padded),
        )

    def _padded(self, images_B3HW: Tensor) -> Tensor:
        """Return depth of images of any size, padded to the encoder's stride."""
        side = min(images_B3HW.shape[-2:])
        return resize_and_run(images_B3HW, side, self.encoder.strides[-1], self.depth)

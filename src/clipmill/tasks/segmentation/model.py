"""Segmentation network for inference: encoder, pyramid and head in plain PyTorch.

Shapes: B batch, H W image, h w a coarser map, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_dense
from clipmill.models.execution import resize_and_run, run_in_chunks, sliding_window_inference
from clipmill.models.heads import LinearHead, SemanticFpnHead, UperNetHead
from clipmill.models.necks import PyramidNeck, build_neck, feature_strides
from clipmill.tasks.config import SegmentationConfig


class SegmentationNetwork(nn.Module):
    """Encoder, pyramid and head: images (B, 3, H, W) in 0..1 to class ids (B, H, W)."""

    def __init__(
        self, config: SegmentationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__()
        self.encoder = build_dense(encoder)
        self.pyramid: nn.Module = nn.Identity()
        if config.head != "linear":
            self.pyramid = neck = build_neck(self.encoder, config.pyramid_channels)
        self.head: UperNetHead | SemanticFpnHead | LinearHead
        if config.head == "linear":
            self.head = LinearHead(self.encoder.channels, num_classes)
        elif config.head == "upernet":
            self.head = UperNetHead(neck.channels, config.head_channels, num_classes)
        else:
            self.head = SemanticFpnHead(
                neck.channels,
                feature_strides(self.encoder),
                config.pyramid_channels,
                config.head_channels,
                num_classes,
            )
        self._num_classes = num_classes
        self._test_mode = config.test_mode
        self._stride = config.test_stride
        self._short_side = config.test_side
        self._window = config.crop_size
        # A pyramid's coarsest map halves a plain encoder's.
        halved = 2 if isinstance(self.pyramid, PyramidNeck) else 1
        self._multiple = halved * max(self.encoder.strides)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the most probable class of each pixel, uint8."""
        height, width = images_B3HW.shape[-2:]
        # The shorter side is resized to the crop's, apart from padding.
        resized = self._short_side**2 * max(height, width) / min(height, width)
        elements = self._num_classes * max(height * width, int(resized))
        return run_in_chunks(self._argmax, images_B3HW, elements)

    def _argmax(self, images_B3HW: Tensor) -> Tensor:
        if self._test_mode == "whole":
            logits_BCHW = self._whole_image(images_B3HW)
        else:
            logits_BCHW = resize_and_run(images_B3HW, self._short_side, 1, self._sliding_window)
        return logits_BCHW.argmax(dim=1).to(torch.uint8)

    def _whole_image(self, images_B3HW: Tensor) -> Tensor:
        return resize_and_run(images_B3HW, self._short_side, self._multiple, self._logits)

    def _sliding_window(self, images_B3HW: Tensor) -> Tensor:
        """Return logits averaged over windows of the crop's size, at the image's size."""
        return sliding_window_inference(images_B3HW, self._window, self._stride, self._padded)

    def _padded(self, images_B3HW: Tensor) -> Tensor:
        """Return logits of a window at its own size, padded to the encoder's stride."""
        side = min(images_B3HW.shape[-2:])
        return resize_and_run(images_B3HW, side, self._multiple, self._logits)

    def _logits(self, images_B3HW: Tensor) -> Tensor:
        coarse_BChw = self.head(self.pyramid(self.encoder(images_B3HW)))
        # Resizing and argmax are several times faster with a pixel's classes contiguous.
        coarse_BChw = coarse_BChw.contiguous(memory_format=torch.channels_last)
        return F.interpolate(
            coarse_BChw, images_B3HW.shape[-2:], mode="bilinear", align_corners=False
        )

"""The segmentation network that serves: encoder, pyramid and head in plain PyTorch.

Shapes: B batch, H W image, h w a coarser map, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from clipmill.models.execution import few_at_once
from clipmill.models.dense import build_dense
from clipmill.models.config import EncoderConfig
from clipmill.models.linear_head import LinearHead
from clipmill.models.necks import PyramidNeck, build_neck, map_strides
from clipmill.models.semantic_fpn import SemanticFpnHead
from clipmill.models.upernet import UperNetHead
from clipmill.tasks.inference import run_at, run_in_windows
from clipmill.tasks.segmentation.task import SegmentationConfig


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
                map_strides(self.encoder),
                config.pyramid_channels,
                config.head_channels,
                num_classes,
            )
        self._num_classes = num_classes
        self._test = config.test
        self._stride = config.test_stride
        self._short_side = config.crop_size
        # A pyramid's coarsest map halves a plain encoder's.
        halved = 2 if isinstance(self.pyramid, PyramidNeck) else 1
        self._multiple = halved * max(self.encoder.strides)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The likeliest class of each pixel, uint8."""
        height, width = images_B3HW.shape[-2:]
        # The network sees the shorter side at the crop's size, give or take its padding.
        seen = self._short_side**2 * max(height, width) / min(height, width)
        elements = self._num_classes * max(height * width, int(seen))
        return few_at_once(self._classes, images_B3HW, elements)

    def _classes(self, images_B3HW: Tensor) -> Tensor:
        if self._test == "whole":
            logits_BCHW = self._whole(images_B3HW)
        else:
            logits_BCHW = run_at(images_B3HW, self._short_side, 1, self._slide)
        return logits_BCHW.argmax(dim=1).to(torch.uint8)

    def _whole(self, images_B3HW: Tensor) -> Tensor:
        return run_at(images_B3HW, self._short_side, self._multiple, self._logits)

    def _slide(self, images_B3HW: Tensor) -> Tensor:
        """Logits averaged over the training crop's windows, at the size that the image has."""
        return run_in_windows(images_B3HW, self._short_side, self._stride, self._whole)

    def _logits(self, images_B3HW: Tensor) -> Tensor:
        coarse_BChw = self.head(self.pyramid(self.encoder(images_B3HW)))
        # Resizing and choosing are several times faster where a pixel's classes lie together.
        coarse_BChw = coarse_BChw.contiguous(memory_format=torch.channels_last)
        return F.interpolate(
            coarse_BChw, images_B3HW.shape[-2:], mode="bilinear", align_corners=False
        )

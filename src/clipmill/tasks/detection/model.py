"""The detection network that serves: encoder, pyramid and heads in plain PyTorch.

Shapes: B batch, H W image, N detections.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from clipmill.models.config import EncoderConfig
from clipmill.models.necks import DetectionNeck
from clipmill.models.mask_rcnn import Limits, ProposalHead, RegionHeads, paste
from clipmill.models.windowed import build_detector
from clipmill.tasks.detection.task import DetectionConfig


class DetectionNetwork(nn.Module):
    """Images (B, 3, H, W) in 0..1 to boxes, scores, labels and masks of each."""

    def __init__(self, config: DetectionConfig, encoder: EncoderConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder = build_detector(encoder)
        self.neck = DetectionNeck(self.encoder, config.neck_channels)
        width, strides = config.neck_channels, self.neck.strides
        self.heads = nn.ModuleDict(
            {
                "rpn_head": ProposalHead(width, strides, config.anchor_scale),
                "roi_head": RegionHeads(
                    width,
                    config.hidden_width,
                    num_classes,
                    num_stages=config.num_stages,
                    strides=strides,
                ),
            }
        )
        self._long_side = config.image_size
        # The pyramid's coarsest map halves a plain encoder's.
        self._multiple = 2 * max(self.encoder.strides)
        self._limits = Limits(
            proposals_per_level=config.num_proposals, proposals=config.num_proposals
        )

    def forward(self, images_B3HW: Tensor) -> list[dict[str, Tensor]]:
        """For each image ``boxes`` (N, 4), ``scores``, ``labels``, ``masks`` (N, H, W), best first.

        The longer side is brought to the training canvas's, as every test of ViTDet does.
        """
        height, width = images_B3HW.shape[-2:]
        factor = self._long_side / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        if size != (height, width):
            images_B3HW = F.interpolate(
                images_B3HW, size, mode="bilinear", align_corners=False, antialias=True
            )
        return [
            self._in_image(found, masks, size, (height, width))
            for found, masks in self.detect(images_B3HW)
        ]

    def detect(self, images_B3HW: Tensor) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Detections in the images' own pixels, and their masks (N, 28, 28) within boxes."""
        size = (images_B3HW.shape[-2], images_B3HW.shape[-1])
        below, right = (-side % self._multiple for side in size)
        maps = self.neck(self.encoder(F.pad(images_B3HW, (0, right, 0, below))))
        proposals = self.heads["rpn_head"](maps, size, self._limits)
        regions = self.heads["roi_head"]
        assert isinstance(regions, RegionHeads)
        found = regions.boxes(maps, proposals, size, self._limits)
        return list(zip(found, regions.masks(maps, found), strict=True))

    @staticmethod
    def _in_image(
        found: dict[str, Tensor], masks: Tensor, seen: tuple[int, int], image: tuple[int, int]
    ) -> dict[str, Tensor]:
        across, down = image[1] / seen[1], image[0] / seen[0]
        boxes = found["boxes"] * found["boxes"].new_tensor([across, down, across, down])
        return found | {"boxes": boxes, "masks": paste(masks, boxes, *image)}

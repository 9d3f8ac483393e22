"""Detection network for inference: encoder, pyramid and heads in plain PyTorch.

Shapes: B batch, H W image, N detections.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_detection_encoder
from clipmill.models.mask_rcnn import PostprocessConfig, RoIHeads, RPNHead, paste_masks_in_image
from clipmill.models.necks import DetectionNeck
from clipmill.tasks.config import DetectionConfig


class DetectionNetwork(nn.Module):
    """Images (B, 3, H, W) in 0..1 to boxes, scores, labels and masks of each."""

    def __init__(self, config: DetectionConfig, encoder: EncoderConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder = build_detection_encoder(encoder)
        self.neck = DetectionNeck(self.encoder, config.neck_channels)
        width, strides = config.neck_channels, self.neck.strides
        self.heads = nn.ModuleDict(
            {
                "rpn_head": RPNHead(width, strides, config.anchor_scale),
                "roi_head": RoIHeads(
                    width,
                    config.roi_hidden_dim,
                    num_classes,
                    num_stages=config.num_stages,
                    strides=strides,
                    has_masks=config.mask_head,
                ),
            }
        )
        self._has_masks = config.mask_head
        self._long_side = config.image_size
        # The pyramid's coarsest map halves a plain encoder's.
        self._multiple = 2 * max(self.encoder.strides)
        self._limits = PostprocessConfig(
            proposals_per_level=config.num_proposals, proposals=config.num_proposals
        )

    def forward(self, images_B3HW: Tensor) -> list[dict[str, Tensor]]:
        """Return ``boxes`` (N, 4), ``scores``, ``labels``, ``masks`` (N, H, W) of each image.

        Without a mask head there are no masks. The best come first. The longer side is resized to
        the training canvas's, as in ViTDet.
        """
        height, width = images_B3HW.shape[-2:]
        factor = self._long_side / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        if size != (height, width):
            images_B3HW = F.interpolate(
                images_B3HW, size, mode="bilinear", align_corners=False, antialias=True
            )
        return [
            self._rescale(detections, masks, size, (height, width))
            for detections, masks in self.detect(images_B3HW)
        ]

    def detect(self, images_B3HW: Tensor) -> list[tuple[dict[str, Tensor], Tensor | None]]:
        """Return detections in pixels of the input, and their masks (N, 28, 28) within boxes.

        Masks are None without a mask head.
        """
        size = (images_B3HW.shape[-2], images_B3HW.shape[-1])
        below, right = (-side % self._multiple for side in size)
        maps = self.neck(self.encoder(F.pad(images_B3HW, (0, right, 0, below))))
        proposals = self.heads["rpn_head"](maps, size, self._limits)
        roi_heads = self.heads["roi_head"]
        assert isinstance(roi_heads, RoIHeads)
        detections = roi_heads.boxes(maps, proposals, size, self._limits)
        if not self._has_masks:
            return [(each, None) for each in detections]
        return list(zip(detections, roi_heads.masks(maps, detections), strict=True))

    @staticmethod
    def _rescale(
        detections: dict[str, Tensor],
        masks: Tensor | None,
        input_size: tuple[int, int],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Bring detections from the input's size to the image's, both (height, width)."""
        scale_x, scale_y = size[1] / input_size[1], size[0] / input_size[0]
        boxes = detections["boxes"]
        boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        if masks is None:
            return detections | {"boxes": boxes}
        return detections | {"boxes": boxes, "masks": paste_masks_in_image(masks, boxes, *size)}

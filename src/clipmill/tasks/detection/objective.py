"""Training objective of detection: mmdet's heads and losses on a clipmill encoder.

Shapes: B batch, M objects of an image (the most in the batch), S canvas side.
"""

import torch
from torch import Tensor

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import DenseEncoder, build_detection_encoder
from clipmill.models.necks import DetectionNeck
from clipmill.openmmlab.detection import MaskRcnnTraining
from clipmill.tasks.config import DetectionConfig
from clipmill.tasks.objective import EncoderObjective


class DetectionObjective(EncoderObjective[DenseEncoder]):
    """Losses of proposals, and of each stage's classes, boxes and masks."""

    def __init__(self, config: DetectionConfig, encoder: EncoderConfig, num_classes: int) -> None:
        super().__init__(freeze_encoder=config.freeze_encoder)
        self.encoder = self.freeze_if(build_detection_encoder(encoder, drop_path=config.drop_path))
        self.neck = DetectionNeck(self.encoder, config.neck_channels)
        self.heads = MaskRcnnTraining(
            config.neck_channels,
            config.roi_hidden_dim,
            num_classes,
            num_stages=config.num_stages,
            strides=self.neck.strides,
            anchor_scale=config.anchor_scale,
            num_proposals=config.num_proposals,
            rois_per_image=config.rois_per_image,
            init_std=config.init_std,
            mask_head=config.mask_head,
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return mmdet's losses by their names."""
        images_B3SS = batch["images"].permute(0, 3, 1, 2).float() / 255
        size = (images_B3SS.shape[2], images_B3SS.shape[3])
        # In fp32, as mmdet does under mixed precision: anchors at one position differ by little.
        maps = [m.float() for m in self.neck(self.encoder(images_B3SS))]
        with torch.autocast(images_B3SS.device.type, enabled=False):
            losses: dict[str, Tensor] = self.heads.loss(
                maps,
                boxes_BM4=batch["boxes"],
                labels_BM=batch["labels"],
                masks_BMHW=unpack_bits(batch["masks"], size[1]) if "masks" in batch else None,
                has_mask_BM=batch["has_mask"] if "masks" in batch else None,
                is_crowd_BM=batch["is_crowd"],
                size=size,
            )
        return losses


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """Unpack bits that NumPy packed along the last axis, to one value each, uint8."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :width]

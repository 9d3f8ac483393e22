"""Segmentation's training objective: mmseg's heads and losses on an encoder of ours."""

from torch import Tensor

from clipmill.models.dense import build_dense
from clipmill.models.encoders import EncoderConfig
from clipmill.models.neck import build_neck, map_strides
from clipmill.openmmlab.segmentation import SemanticFpnTraining, UperNetTraining
from clipmill.tasks.dense_objective import DenseObjective
from clipmill.tasks.segmentation import SegmentationConfig


class SegmentationObjective(DenseObjective):
    """Cross-entropy of the head, and with UPerHead 0.4 times that of an FCN head on a third map."""

    def __init__(
        self, config: SegmentationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__(is_frozen=config.is_frozen)
        self.encoder = self.held(build_dense(encoder, drop_path=config.drop_path))
        self.pyramid = build_neck(self.encoder, config.pyramid_channels)
        self.heads: UperNetTraining | SemanticFpnTraining
        if config.head == "upernet":
            self.heads = UperNetTraining(
                in_channels=self.pyramid.channels,
                channels=config.head_channels,
                num_classes=num_classes,
                aux_channels=config.auxiliary_channels,
                classifier_std=config.classifier_std,
            )
        else:
            self.heads = SemanticFpnTraining(
                in_channels=self.pyramid.channels,
                strides=map_strides(self.encoder),
                width=config.pyramid_channels,
                channels=config.head_channels,
                num_classes=num_classes,
                classifier_std=config.classifier_std,
            )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses ``decode`` and, of UPerNet, ``auxiliary``."""
        images_B3HW = batch["images"].permute(0, 3, 1, 2).float() / 255
        maps = self.pyramid(self.encoder(images_B3HW))
        losses: dict[str, Tensor] = self.heads.loss(maps, batch["labels"].long())
        return losses

"""Training objective of segmentation: mmseg's heads and losses on a clipmill encoder.

Shapes: B batch, H W image, h w a feature map's height and width, C classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.data.labeled.dense import IGNORED
from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_dense
from clipmill.models.heads import LinearHead
from clipmill.models.necks import build_neck, feature_strides
from clipmill.openmmlab.segmentation import SemanticFpnTraining, UperNetTraining
from clipmill.tasks.config import SegmentationConfig
from clipmill.tasks.objective import DenseObjective


class SegmentationObjective(DenseObjective):
    """Cross-entropy of the head, plus 0.4 times an FCN head's on the third map with UPerNet."""

    def __init__(
        self, config: SegmentationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__(freeze_encoder=config.freeze_encoder)
        self.encoder = self.freeze_if(build_dense(encoder, drop_path=config.drop_path))
        self.heads: UperNetTraining | SemanticFpnTraining | LinearTraining
        if config.head == "linear":
            self.pyramid: nn.Module = nn.Identity()
            self.heads = LinearTraining(
                self.encoder.channels,
                num_classes,
                dropout=config.linear_dropout,
                loss_at_image=config.linear_loss == "image",
            )
            return
        self.pyramid = build_neck(self.encoder, config.pyramid_channels)
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
                strides=feature_strides(self.encoder),
                width=config.pyramid_channels,
                channels=config.head_channels,
                num_classes=num_classes,
                classifier_std=config.classifier_std,
            )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses ``decode`` and, with UPerNet, ``auxiliary``."""
        maps = self.pyramid(self.feature_maps(batch))
        losses: dict[str, Tensor] = self.heads.loss(maps, batch["labels"].long())
        return losses


class LinearTraining(nn.Module):
    """Linear head with its cross-entropy; ``decode_head`` is the part used for inference."""

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        dropout: float = 0.0,
        loss_at_image: bool = False,
    ) -> None:
        super().__init__()
        self.decode_head = LinearHead(channels, num_classes)
        self._dropout = nn.Dropout2d(dropout)
        self._loss_at_image = loss_at_image

    def loss(self, maps: list[Tensor], labels_BHW: Tensor) -> dict[str, Tensor]:
        """Return the loss ``decode`` at the feature map's resolution, or at the image's.

        Labels are int64, 255 where unknown. A linear head can't tell the pixels between two
        positions apart, so they may be left out.
        """
        logits_BChw = self.decode_head([self._dropout(each) for each in maps])
        if self._loss_at_image:
            logits_BCHW = F.interpolate(
                logits_BChw, labels_BHW.shape[-2:], mode="bilinear", align_corners=False
            )
            return {"decode": _cross_entropy(logits_BCHW, labels_BHW)}
        labels_B1hw = F.interpolate(
            labels_BHW[:, None].float(), logits_BChw.shape[-2:], mode="nearest-exact"
        )
        return {"decode": _cross_entropy(logits_BChw, labels_B1hw[:, 0].long())}


def _cross_entropy(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Return the mean over labeled pixels; 0 of a batch without one."""
    total = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / (labels_BHW != IGNORED).sum().clamp(min=1)

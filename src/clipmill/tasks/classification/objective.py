"""Training objective of classification.

Shapes: B batch, S image side, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.data.transforms.mixup import erase, mix
from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import PooledEncoder, build_pooled
from clipmill.tasks.config import ClassificationConfig
from clipmill.tasks.objective import EncoderObjective


class ClassificationObjective(EncoderObjective[PooledEncoder]):
    """Cross-entropy with label smoothing, mixup, CutMix and random erasing."""

    def __init__(
        self, config: ClassificationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__(freeze_encoder=config.freeze_encoder)
        self.encoder = self.freeze_if(build_pooled(encoder, drop_path=config.drop_path))
        self.head = nn.Linear(self.encoder.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self._config = config

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss ``classification``."""
        config, num_classes = self._config, self.head.out_features
        images_B3SS = batch["images"].permute(0, 3, 1, 2).float() / 255
        targets_BC = F.one_hot(batch["labels"].long(), num_classes).float()
        targets_BC = torch.lerp(
            targets_BC, torch.full_like(targets_BC, 1 / num_classes), config.label_smoothing
        )
        if config.random_erasing_prob:
            images_B3SS = erase(images_B3SS, config.random_erasing_prob)
        images_B3SS, targets_BC = mix(
            images_B3SS, targets_BC, mixup=config.mixup, cutmix=config.cutmix
        )
        logits_BC = self.head(self.encoder(images_B3SS)).float()
        return {"classification": F.cross_entropy(logits_BC, targets_BC)}

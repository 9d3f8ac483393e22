"""Cross-entropy of a timm model on mixed, erased, smoothly labelled batches.

Shapes: B batch, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.normalization import Normalize
from clipmill.pretrain.mixing import erase, mix
from clipmill.pretrain.supervised import SupervisedConfig


class SupervisedObjective(Objective):
    """The loss of a batch with ``image`` (B, 3, H, W) uint8 and ``label`` (B,)."""

    def __init__(self, config: SupervisedConfig, num_classes: int, here: Ranks) -> None:
        import timm

        super().__init__()
        del here  # the loss is a mean over pictures, whoever has them
        self.normalize = Normalize(config.vision.mean, config.vision.std)
        # Named as in a CLIP checkpoint, so that the tower is found in the same place.
        trunk = timm.create_model(
            config.vision.timm_model, num_classes=num_classes, drop_path_rate=config.drop_path
        )
        self.visual = nn.ModuleDict({"trunk": trunk})
        self._config = config
        self._num_classes = num_classes

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss ``classification``."""
        config = self._config
        images_B3HW = self.normalize(batch["image"].float() / 255)
        targets_BC = F.one_hot(batch["label"], self._num_classes).float()
        targets_BC = torch.lerp(
            targets_BC, torch.full_like(targets_BC, 1 / self._num_classes), config.label_smoothing
        )
        images_B3HW = erase(images_B3HW, config.erased)
        images_B3HW, targets_BC = mix(
            images_B3HW, targets_BC, mixup=config.mixup, cutmix=config.cutmix
        )
        logits_BC = self.visual["trunk"](images_B3HW).float()
        return {"classification": F.cross_entropy(logits_BC, targets_BC)}
